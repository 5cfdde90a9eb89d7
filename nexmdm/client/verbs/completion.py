"""The verb that prints a completion script."""

import rich_click as click
from click.shell_completion import get_completion_class


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
    if found is None:
        raise click.UsageError(f"There is no completion for {shell}.")
    click.echo(found(context.find_root().command, {}, "nexmdm", "_NEXMDM_COMPLETE").source())
