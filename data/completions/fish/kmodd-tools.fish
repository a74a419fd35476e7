# fish completion for modprobe, insmod, rmmod, lsmod, modinfo and depmod. `kmodd complete` prints modules, aliases and parameters.
# fish loads a file per command; modprobe.fish and the others are symlinks to this file.

function __kmodd_words
    kmodd complete $argv 2>/dev/null
end

function __kmodd_first # print the first operand
    for word in (commandline -opc)[2..-1]
        string match -q -- '-*' $word; or begin
            echo $word
            return 0
        end
    end
    return 1
end

function __kmodd_removes
    string match -qr -- '^(-[a-z]*r[a-z]*|--remove.*)$' (commandline -opc)
end

function __kmodd_takes_all
    string match -qr -- '^(-[a-z]*a[a-z]*|--all)$' (commandline -opc)
end

complete -c modprobe -f
complete -c modprobe -n __kmodd_removes -a '(__kmodd_words loaded)' -d 'loaded module'
complete -c modprobe -n 'not __kmodd_removes; and begin; __kmodd_takes_all; or not __kmodd_first >/dev/null; end' -a '(__kmodd_words modules)' -d module
complete -c modprobe -n 'not __kmodd_removes; and begin; __kmodd_takes_all; or not __kmodd_first >/dev/null; end; and test -n (commandline -ct)' -a '(__kmodd_words aliases)' -d alias
complete -c modprobe -n 'not __kmodd_removes; and not __kmodd_takes_all; and __kmodd_first >/dev/null' -a '(__kmodd_words parameters (__kmodd_first))' -d parameter
complete -c modprobe -s a -l all -d 'Treat all words as modules'
complete -c modprobe -s r -l remove -d 'Remove instead of insert'
complete -c modprobe -l remove-holders -d 'Remove modules that use it too'
complete -c modprobe -s w -l wait -x -d 'Milliseconds to wait until it is unused'
complete -c modprobe -s R -l resolve-alias -d 'Print the modules that match a name'
complete -c modprobe -l show-alias -d 'Print the modules that match a name'
complete -c modprobe -l first-time -d 'Fail if there is nothing to do'
complete -c modprobe -s i -l ignore-install -d 'Ignore install commands'
complete -c modprobe -l ignore-remove -d 'Ignore remove commands'
complete -c modprobe -s b -l use-blacklist -d 'Apply the blacklist'
complete -c modprobe -s f -l force -d 'Force insertion or removal'
complete -c modprobe -l force-modversion -d 'Ignore symbol versions'
complete -c modprobe -l force-vermagic -d 'Ignore the version magic'
complete -c modprobe -s D -l show-depends -d 'Print the steps, loaded or not'
complete -c modprobe -s c -l showconfig -d 'Print the configuration'
complete -c modprobe -l show-config -d 'Print the configuration'
complete -c modprobe -l show-modversions -r -F -d 'Print symbol versions'
complete -c modprobe -l dump-modversions -r -F -d 'Print symbol versions'
complete -c modprobe -l show-exports -r -F -d 'Print exported symbols'
complete -c modprobe -s n -l dry-run -d 'Do nothing'
complete -c modprobe -l show -d 'Do nothing'
complete -c modprobe -s C -l config -r -F -d 'Read this configuration'
complete -c modprobe -s d -l dirname -x -a '(__fish_complete_directories)' -d 'Prefix of /lib/modules'
complete -c modprobe -s S -l set-version -x -a '(path basename /lib/modules/*)' -d 'Kernel release'
complete -c modprobe -s s -l syslog -d 'Messages to syslog'
complete -c modprobe -s q -l quiet -d 'No messages'
complete -c modprobe -s v -l verbose -d 'Print more messages'
complete -c modprobe -l json -d 'With -D or -n: print JSON'
complete -c modprobe -l no-daemon -d 'Do not use the daemon'

complete -c insmod -n 'not __kmodd_first >/dev/null' -F
complete -c insmod -n '__kmodd_first >/dev/null' -f -a '(__kmodd_words parameters (__kmodd_first))' -d parameter
complete -c insmod -s f -l force -d Force
complete -c insmod -l force-modversion -d 'Ignore symbol versions'
complete -c insmod -l force-vermagic -d 'Ignore the version magic'

complete -c rmmod -f -a '(__kmodd_words loaded)' -d 'loaded module'
complete -c rmmod -s f -l force -d Force

complete -c lsmod -f -l json -d 'Print JSON'

complete -c modinfo -a '(__kmodd_words modules)' -d module
complete -c modinfo -s a -l author -d Author
complete -c modinfo -s d -l description -d Description
complete -c modinfo -s l -l license -d License
complete -c modinfo -s p -l parameters -d Parameters
complete -c modinfo -s n -l filename -d File
complete -c modinfo -s 0 -l null -d 'End lines with NUL'
complete -c modinfo -s m -l modname -d 'Treat the word as a module name'
complete -c modinfo -s F -l field -x -d 'One field'
complete -c modinfo -s k -l set-version -x -a '(path basename /lib/modules/*)' -d 'Kernel release'
complete -c modinfo -s b -l basedir -x -a '(__fish_complete_directories)' -d 'Prefix of /lib/modules'
complete -c modinfo -l json -d 'Print JSON'

complete -c depmod -f -a '(path basename /lib/modules/*)' -d 'Kernel release'
complete -c depmod -s a -l all -d 'All modules'
complete -c depmod -s A -l quick -d 'Only if a module is newer'
complete -c depmod -s b -l basedir -x -a '(__fish_complete_directories)' -d 'Prefix of /lib/modules'
complete -c depmod -s m -l moduledir -x -a '(__fish_complete_directories)' -d 'In place of /lib/modules'
complete -c depmod -s o -l outdir -x -a '(__fish_complete_directories)' -d 'Output directory'
complete -c depmod -s C -l config -r -F -d 'Read this configuration'
complete -c depmod -s E -l symvers -r -F -d 'Module.symvers'
complete -c depmod -s F -l filesyms -r -F -d 'System.map'
complete -c depmod -s e -l errsyms -d 'Report unknown symbols'
complete -c depmod -s n -l show -d 'Write to standard output'
complete -c depmod -l dry-run -d 'Write to standard output'
complete -c depmod -s P -l symbol-prefix -x -d 'One character'
complete -c depmod -s v -l verbose -d 'Print more messages'
complete -c depmod -s w -l warn -d 'Report duplicates'
complete -c depmod -l no-cache -d 'Read every module'

for tool in modprobe insmod rmmod lsmod modinfo depmod
    complete -c $tool -s V -l version -d 'Print the version'
    complete -c $tool -s h -l help -d 'Print help'
end
