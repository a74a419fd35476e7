#!/bin/bash
# dracut copies modprobe and its like as they stand. Where these are kmodd's, the initrd would have a program without its
# Python, or a helper without the program that it executes: in it, kmod's own does the work.

check() {
    return 0
}

install() {
    local tool file kmod
    kmod=$(readlink -f "$(type -P kmod)")
    [[ $kmod ]] || return 0
    for tool in modprobe insmod rmmod lsmod modinfo depmod; do
        for file in "$initdir"/{sbin,bin,usr/sbin,usr/bin}/"$tool"; do
            [[ -e $file || -L $file ]] || continue
            case $(readlink "$file") in
                kmod | */kmod | *busybox) ;;
                *)
                    inst_binary "$kmod"
                    rm -f "$file"
                    ln -s "$kmod" "$file"
                    ;;
            esac
        done
    done
    rm -rf "${initdir:?}/usr/bin/kmodd" "$initdir/usr/lib/kmodd" "$initdir/usr/sbin/modprobe.kmod"
}
