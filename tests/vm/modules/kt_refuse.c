// SPDX-License-Identifier: GPL-2.0
// A module whose init finds no device.
#include <linux/errno.h>
#include <linux/module.h>

static int __init kt_refuse_init(void)
{
	return -ENODEV;
}

module_init(kt_refuse_init);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("kmodd test: refuses");
