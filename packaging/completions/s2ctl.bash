# Made by generate.py beside this file's source; change it there.
_s2ctl() {
    local cur=${COMP_WORDS[COMP_CWORD]} line=${COMP_LINE:0:COMP_POINT}
    local first= next= options= ids=1 files= index
    local -a words
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    local last=${words[-1]} prev=${words[-2]}
    [[ $cur == "=" ]] && cur=
    [[ $last == --*=* ]] && prev=${last%%=*}
    for (( index = 1; index < ${#words[@]} - 1; index++ )); do
        case ${words[index]} in
            -H|--host|--host=*) ids=;;&
            --json) [[ ${words[index+1]} == @(short|pretty|off) ]] && (( index++ ));;
            -H|--host|--address|-n|--lines|-p|--property|--type|--listen|--rate|--security|--lifetime|--allow-from|--label|--uid|--uid-file|--drain|-d|--delay|--count|--sort|--span|--ip|--dns|--out|--key|--days|--expires|--file|--config) (( index++ ));;
            -*) ;;
            *) if [[ -z $first ]]; then first=${words[index]}; else next=${next:-${words[index]}}; fi;;
        esac
    done
    COMPREPLY=()
    case $prev in
        --json) COMPREPLY=($(compgen -W "short pretty off" -- "$cur")); [[ $COMPREPLY ]] && return;;
        -H|--host) COMPREPLY=($(compgen -A hostname -- "$cur")); return;;
        --address|-n|--lines|-p|--property|--type|--listen|--rate|--security|--lifetime|--allow-from|--label|--uid|--drain|-d|--delay|--count|--ip|--dns|--days|--expires) return;;
        --uid-file|--out|--key|--file|--config) COMPREPLY=($(compgen -f -- "$cur")); return;;
        --sort) COMPREPLY=($(compgen -W "rate in out bytes conns rtt retrans id label" -- "$cur")); return;;
        --span) COMPREPLY=($(compgen -W "1 10 60" -- "$cur")); return;;
    esac
    case $first in cert|token|config) first+=" $next";; esac
    case "$first" in
        "") options="-h --help -q --quiet --json --no-pager --no-legend -H --host --address" next="list status show inbound outbound update extend release logs watch top check test cert token config version" ids=;;
        "cert ") options= next="create show" ids=;;
        "token ") options= next="create list revoke" ids=;;
        "config ") options= next="show check" ids=;;
        "list") options="-h --help -l --long -q --quiet --json --no-pager --no-legend -H --host --address" next= ids=;;
        "status") options="-h --help -n --lines -q --quiet --json --no-pager -H --host --address" next=;;
        "show") options="-h --help -p --property --value --reveal-uid -q --quiet --json --no-pager --no-ask-password -H --host --address" next=;;
        "inbound") options="-h --help --type --listen --rate --security --lifetime --allow-from --label --uid --uid-file --wait -q --quiet --json --no-ask-password -H --host --address" next= ids=;;
        "outbound") options="-h --help --type --listen --rate --security --lifetime --allow-from --label --wait -q --quiet --json --no-ask-password -H --host --address" next= ids=;;
        "update") options="-h --help --rate --lifetime -q --quiet --no-ask-password -H --host --address" next=;;
        "extend") options="-h --help -q --quiet --no-ask-password -H --host --address" next=;;
        "release") options="-h --help --all --drain -q --quiet --no-ask-password -H --host --address" next=;;
        "logs") options="-h --help -f --follow -n --lines -q --quiet --json --no-pager -H --host --address" next=;;
        "watch") options="-h --help -q --quiet --json -H --host --address" next=;;
        "top") options="-h --help -d --delay -n --count -b --batch --sort --span --no-legend -q --quiet --json -H --host --address" next= ids=;;
        "check") options="-h --help -q --quiet --json --no-pager --no-legend -H --host --address" next= ids=;;
        "test") options="-h --help --uid --security --throughput -q --quiet --json --no-ask-password -H --host --address" next=;;
        "cert create") options="-h --help --ip --dns --out --key --days --force -q --quiet" next= ids=;;
        "cert show") options="-h --help -q --quiet --json" next= ids= files=1;;
        "token create") options="-h --help --expires --file -q --quiet --json --no-pager" next= ids=;;
        "token list") options="-h --help --file -q --quiet --json --no-pager --no-legend" next= ids=;;
        "token revoke") options="-h --help --file -q --quiet" next= ids=;;
        "config show") options="-h --help --config -q --quiet --json --no-pager" next= ids=;;
        "config check") options="-h --help --config -q --quiet --json" next= ids=;;
        "version") options="-h --help -q --quiet --json" next= ids=;;
        *) options= next= ids=;;
    esac
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$cur"))
    elif [[ $next ]]; then
        COMPREPLY=($(compgen -W "$next" -- "$cur"))
    elif [[ $ids ]]; then
        COMPREPLY=($(compgen -W "$(s2ctl list --quiet 2>/dev/null)" -- "$cur"))
    elif [[ $files ]]; then
        COMPREPLY=($(compgen -f -- "$cur"))
        compopt -o filenames 2>/dev/null
    fi
}
complete -F _s2ctl s2ctl
