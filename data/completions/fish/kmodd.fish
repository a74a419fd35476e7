# fish completion for kmodd. `kmodd complete` prints verbs, options and modules.

function __kmodd_verb # print the verb, and the word after it
    for word in (commandline -opc)[2..-1]
        string match -q -- '-*' $word; or echo $word
    end
end

function __kmodd_is # whether the verb is one of these
    contains -- (__kmodd_verb)[1] $argv
end

complete -c kmodd -f
complete -c kmodd -n 'not count (__kmodd_verb) >/dev/null' -a '(kmodd complete verbs 2>/dev/null)'
complete -c kmodd -n 'not count (__kmodd_verb) >/dev/null' -l version -d 'Show the version and the features'
complete -c kmodd -n '__kmodd_is help' -a '(kmodd complete verbs 2>/dev/null)'
complete -c kmodd -n 'count (__kmodd_verb) >/dev/null; and string match -q -- "-*" (commandline -ct)' -a '(kmodd complete options (__kmodd_verb)[1..2] 2>/dev/null)'
complete -c kmodd -n '__kmodd_is why explain lookup wait deny allow' -F -a '(kmodd complete modules 2>/dev/null)'
complete -c kmodd -n '__kmodd_is history' -l module -x -a '(kmodd complete modules 2>/dev/null)'
complete -c kmodd -n '__kmodd_is history' -l result -x -a '(kmodd complete results 2>/dev/null)'
complete -c kmodd -n '__kmodd_is history' -l user -x -a '(__fish_complete_users)'
complete -c kmodd -n '__kmodd_is history' -l device -r -F
complete -c kmodd -n '__kmodd_is why history timeline blame' -s D -l directory -x -a '(__fish_complete_directories)'
complete -c kmodd -n '__kmodd_is policy' -a 'check test suggest'
complete -c kmodd -n '__kmodd_is profile' -a 'make test'
complete -c kmodd -n '__kmodd_is profile' -l format -x -a 'policy modules-load lsmod mkinitcpio dracut initramfs-tools'
complete -c kmodd -n '__kmodd_is whatif' -l tree -x -a '(__fish_complete_directories)'
complete -c kmodd -n '__kmodd_is whatif' -l initrd -r -F
complete -c kmodd -n '__kmodd_is whatif' -l devices -r -F
complete -c kmodd -n '__kmodd_is check' -l benchmark -r -F -a 'cis stig'
complete -c kmodd -n '__kmodd_is convert-config' -F
