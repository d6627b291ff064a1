"""The completion command."""

from typing import Literal

from gatewise.cli.app import app


@app.command
def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print a script that completes commands and flags with the tab key.

    Example: source <(gatewise completion bash)

    Put this line in ~/.bashrc. For zsh: `source <(gatewise completion zsh)` in ~/.zshrc, after compinit. For fish:
    `gatewise completion fish | source` in config.fish.

    Parameters
    ----------
    shell
        Shell that reads the script.
    """
    print(app.generate_completion(shell=shell))
    if shell == "zsh":  # cyclopts writes a file for $fpath, whose function is registered by its first line
        print("compdef _cyclopts_gatewise gatewise")
