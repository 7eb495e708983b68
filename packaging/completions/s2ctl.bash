# Made by generate.py beside this file's source; change it there.
_s2ctl() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} verb=${COMP_WORDS[1]}
    [[ $cur == "=" ]] && cur=
    [[ $prev == "=" ]] && prev=${COMP_WORDS[COMP_CWORD-2]}
    case $verb in cert|token|config) verb+=" ${COMP_WORDS[2]}";; esac
    local options= ids= files=
    COMPREPLY=()
    if (( COMP_CWORD == 1 )); then
        COMPREPLY=($(compgen -W "list status show inbound outbound update extend release logs watch top check test cert token config version" -- "$cur"))
        return
    fi
    if (( COMP_CWORD == 2 )) && [[ ${COMP_WORDS[1]} == cert ]]; then
        COMPREPLY=($(compgen -W "create show" -- "$cur"))
        return
    fi
    if (( COMP_CWORD == 2 )) && [[ ${COMP_WORDS[1]} == token ]]; then
        COMPREPLY=($(compgen -W "create list revoke" -- "$cur"))
        return
    fi
    if (( COMP_CWORD == 2 )) && [[ ${COMP_WORDS[1]} == config ]]; then
        COMPREPLY=($(compgen -W "show check" -- "$cur"))
        return
    fi
    case $prev in
        --json) COMPREPLY=($(compgen -W "short pretty off" -- "$cur")); return;;
        -H|--host) COMPREPLY=($(compgen -A hostname -- "$cur")); return;;
        --address|-n|--lines|-p|--property|--type|--listen|--rate|--security|--lifetime|--allow-from|--label|--uid|--drain|-d|--delay|--count|--ip|--dns|--days|--expires) return;;
        --uid-file|--out|--key|--file|--config) COMPREPLY=($(compgen -f -- "$cur")); return;;
        --sort) COMPREPLY=($(compgen -W "rate in out bytes conns rtt retrans id label" -- "$cur")); return;;
        --span) COMPREPLY=($(compgen -W "1 10 60" -- "$cur")); return;;
    esac
    case "$verb" in
        "list") options="-h --help -l --long -q --quiet --json --no-pager --no-legend -H --host --address";;
        "status") options="-h --help -n --lines --json --no-pager -H --host --address" ids=1;;
        "show") options="-h --help -p --property --value --reveal-uid --json --no-pager --no-ask-password -H --host --address" ids=1;;
        "inbound") options="-h --help --type --listen --rate --security --lifetime --allow-from --label --uid --uid-file --wait -q --quiet --json --no-ask-password -H --host --address";;
        "outbound") options="-h --help --type --listen --rate --security --lifetime --allow-from --label --wait -q --quiet --json --no-ask-password -H --host --address";;
        "update") options="-h --help --rate --lifetime -q --quiet --no-ask-password -H --host --address" ids=1;;
        "extend") options="-h --help -q --quiet --no-ask-password -H --host --address" ids=1;;
        "release") options="-h --help --all --drain -q --quiet --no-ask-password -H --host --address" ids=1;;
        "logs") options="-h --help -f --follow -n --lines --json --no-pager -H --host --address" ids=1;;
        "watch") options="-h --help --json -H --host --address" ids=1;;
        "top") options="-h --help -d --delay -n --count -b --batch --sort --span --no-legend --json -H --host --address";;
        "check") options="-h --help -q --quiet --json --no-pager --no-legend -H --host --address";;
        "test") options="-h --help --uid --security --throughput -q --quiet --json --no-ask-password -H --host --address";;
        "cert create") options="-h --help --ip --dns --out --key --days --force";;
        "cert show") options="-h --help --json" files=1;;
        "token create") options="-h --help --expires --file --json --no-pager";;
        "token list") options="-h --help --file --json --no-pager --no-legend";;
        "token revoke") options="-h --help --file -q --quiet";;
        "config show") options="-h --help --config --json --no-pager";;
        "config check") options="-h --help --config -q --quiet";;
        "version") options="-h --help";;
    esac
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$cur"))
    elif [[ $ids ]]; then
        COMPREPLY=($(compgen -W "$(s2ctl list --quiet 2>/dev/null)" -- "$cur"))
    elif [[ $files ]]; then
        COMPREPLY=($(compgen -f -- "$cur"))
    fi
}
complete -F _s2ctl s2ctl
