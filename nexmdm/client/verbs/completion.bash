# Completion of nexmdm for bash. The program gets the line as it is typed: bash splits words at : and =, too.
_nexmdm_completion() {
    local IFS=$'\n' line="${COMP_LINE:0:COMP_POINT}" word="${COMP_WORDS[COMP_CWORD]}" current before found value
    current="${line##*[[:space:]]}"
    [[ $word == [:=] ]] && word=""
    before="${current%"$word"}"
    COMPREPLY=()
    for found in $(COMP_WORDS="$line" COMP_CWORD="$current" _NEXMDM_COMPLETE=fish_complete "$1"); do
        value="${found#*,}"
        value="${value%%$'\t'*}"
        [[ $value == *:* ]] && compopt -o nospace
        value="${value#"$before"}"
        [[ $value == *[[:space:]\'\"\\\$\`\&\;\|\<\>\(\)\!*?]* ]] && printf -v value %q "$value"
        COMPREPLY+=("$value")
    done
}
complete -o nosort -F _nexmdm_completion nexmdm 2>/dev/null || complete -F _nexmdm_completion nexmdm
