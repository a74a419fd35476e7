#!/bin/bash
# dracut copies modprobe as it stands. Where that is kmodd's helper, the initrd gets the program that the helper executes,
# kmod's own.

check() {
    return 0
}

install() {
    local file
    [[ -L /usr/sbin/modprobe.kmod ]] || return 0
    inst_multiple kmod
    for file in "$initdir/sbin/modprobe" "$initdir/usr/sbin/modprobe" "$initdir/usr/bin/modprobe"; do
        [[ -e $file && ! -L $file ]] || continue
        rm -f "$file"
        ln -s "$(readlink -f /usr/sbin/modprobe.kmod)" "$file"
    done
    rm -f "$initdir/usr/sbin/modprobe.kmod"
}
