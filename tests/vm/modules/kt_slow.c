// SPDX-License-Identifier: GPL-2.0
// A module whose init sleeps where no signal reaches it, for `seconds`.
#include <linux/delay.h>
#include <linux/module.h>

static int seconds = 5;
module_param(seconds, int, 0444);

static int __init kt_slow_init(void)
{
	msleep(seconds * 1000);
	return 0;
}

static void __exit kt_slow_exit(void)
{
}

module_init(kt_slow_init);
module_exit(kt_slow_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("kmodd test: slow init");
