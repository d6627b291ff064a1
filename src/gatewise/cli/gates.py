"""The gates command."""

from typing import Annotated

from cyclopts import Parameter

from gatewise import errors
from gatewise.cli.app import Json, app, print_json, print_table


@app.command
def gates(
    gate: str | None = None,
    /,
    *,
    json_output: Json = False,
    markdown: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """List the gates with their default places, and the places; or the options of one gate with their defaults.

    Example: gatewise gates gct

    Parameters
    ----------
    gate
        Gate of which to list options, defaults and paper: gct, gaternet, ... [all gates, without options].
    json_output
        Print JSON instead of a table.
    markdown
        Print the page docs/gates.md instead of a table.
    """
    from gatewise.analysis import gate_listing

    if markdown and gate is not None:
        raise errors.InvalidValueError("--markdown prints the page of all gates. Omit the name of a gate.")
    if markdown:
        print(gate_listing.gates_page(), end="")
    elif json_output:
        print_json([fact for fact in gate_listing.facts() if gate in {None, fact["name"]}])
    elif gate is not None:
        print(gate_listing.headline(gate))
        print_table(gate_listing.options_table(gate))
    else:
        print_table(gate_listing.gates_table())
        print_table(gate_listing.places_table())
        print("options and paper of a gate: gatewise gates NAME; the network around a network: gatewise gates gaternet")
