"""Mutants of gatewise.cli."""

from mutants import remove, replace

CHANGES = {
    "cli/app.py": {
        "": {
            "interruption swallowed": remove("suppress_keyboard_interrupt=False"),
        },
        "parse_integer": {
            "whole numbers rounded": replace("int(tokens[0].value)", "round(float(tokens[0].value))"),
        },
        "run": {
            "SIGTERM ends without a message": replace("with _sigterm_as_ctrl_c():\n    ...", "..."),
        },
        "_run": {
            "usage errors end in a traceback": replace("errors.GatewiseError", "errors.DataError"),
            "failed training reported as usage error": replace("_print_error(error, 1)", "_print_error(error, 2)"),
        },
        "_print_error": {
            "error on standard output": remove("file=sys.stderr"),
            "error of several lines": replace(
                "f\"gatewise: {' '.join(str(error).split())}\"", "f'gatewise: {error}\\nsee --help'"
            ),
        },
    },
    "cli/training.py": {
        "_with_gater": {
            "flags replace the gater of a recipe": replace("own | given", "given"),
        },
        "recipe_flags": {
            "a flag is missing": replace("field.name not in omitted", "field.name not in (*omitted, 'warmup')"),
        },
        "with_flags": {
            "file wins over flags": replace(
                "dataclasses.replace(base, **given)", "dataclasses.replace(base, **{} if file else given)"
            ),
        },
    },
}
