"""The verb `completion`, which prints a completion script."""

from pathlib import Path
from typing import Final

import rich_click as click
from click.shell_completion import get_completion_class

_BASH: Final = Path(__file__).with_name("completion.bash")
"""The script for bash. bash splits words at colons and spaces.

So click's own script cannot complete `tag:NAME` or an alias with a space.
"""


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    \b
    bash: eval "$(nexmdm completion bash)"               in ~/.bashrc
    zsh:  eval "$(nexmdm completion zsh)"                in ~/.zshrc, after compinit
    fish: nexmdm completion fish > ~/.config/fish/completions/nexmdm.fish
    """
    found = get_completion_class(shell)
    if shell == "bash" or found is None:
        click.echo(_BASH.read_text(encoding="utf-8"), nl=False)
        return
    click.echo(found(context.find_root().command, {}, "nexmdm", "_NEXMDM_COMPLETE").source())
