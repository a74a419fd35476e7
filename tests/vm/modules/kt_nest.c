// SPDX-License-Identifier: GPL-2.0
// A module whose init asks the kernel for another one, and waits for the answer.
#include <linux/kmod.h>
#include <linux/module.h>

static int __init kt_nest_init(void)
{
	pr_info("kt_nest: request_module gives %d\n", request_module("mod1"));
	return 0;
}

static void __exit kt_nest_exit(void)
{
}

module_init(kt_nest_init);
module_exit(kt_nest_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("kmodd test: asks for mod1 in its init");
