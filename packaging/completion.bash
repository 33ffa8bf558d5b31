# Completion of the command myelin in bash. It asks the program itself for its commands and options, so it never tells
# of those of another version.
_myelin() {
    local cur prev words cword split
    _init_completion || return
    local path=() word
    for word in "${words[@]:1:cword-1}"; do
        case $word in
        -*) ;;
        *) path+=("$word") ;;
        esac
    done
    case $prev in
    --config | -c | --ca)
        _filedir
        return
        ;;
    esac
    local help
    help=$("${words[0]}" "${path[@]}" --help 2>/dev/null)
    # After a value or an argument, the command before it is meant.
    while [ -z "$help" ] && [ ${#path[@]} -gt 0 ]; do
        unset 'path[-1]'
        help=$("${words[0]}" "${path[@]}" --help 2>/dev/null)
    done
    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$(sed -nE 's/^ +(-[a-zA-Z], )?(--[a-z-]+).*/\2/p' <<<"$help")" -- "$cur")
        return
    fi
    mapfile -t COMPREPLY < <(compgen -W "$(sed -nE '/^Commands:/,/^$/s/^  ([a-z][a-z-]*) .*/\1/p' <<<"$help")" -- "$cur")
    [ ${#COMPREPLY[@]} -gt 0 ] || _filedir
}
complete -F _myelin myelin
