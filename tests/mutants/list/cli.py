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
            "SIGTERM and SIGHUP end without a message": replace("with _signals_as_ctrl_c():\n    ...", "..."),
        },
        "_run": {
            "usage errors end in a traceback": replace("errors.GatewiseError", "errors.DataError"),
            "failed training reported as usage error": replace("_print_error(error, 1)", "_print_error(error, 2)"),
        },
        "print_table": {
            "wide tables are not turned": replace("_width(upright) > console.width", "False"),
            "all tables are turned": replace("_width(upright) > console.width", "True"),
            "the width that is set is ignored": replace(
                "sys.stdout.isatty() or 'COLUMNS' in os.environ", "sys.stdout.isatty()"
            ),
        },
        "_rich_table": {"names are cut off": remove("overflow='fold'")},
        "_print_error": {
            "error on standard output": remove("file=sys.stderr"),
            "error of several lines": replace(
                "with_names_of_flags(' '.join(str(error).split()))", "f'{error}\\nsee --help'"
            ),
        },
    },
    "cli/training.py": {
        "_with_gater": {
            "flags replace the gater of a recipe": replace("(own or {}) | given", "given"),
        },
    },
    "cli/completing.py": {
        "completion": {
            "zsh does not know the function": replace("shell == 'zsh'", "False"),
        },
    },
    "cli/comparing.py": {
        "compare": {"what a command cannot use is ignored": replace("workers is not None", "False")},
    },
    "cli/demonstration.py": {
        "_section": {
            "links to files that are missing": replace("(out / file).exists()", "True"),
        },
        "demo": {
            "a missing extra loses the page": replace("errors.MissingExtraError", "errors.DataError"),
        },
    },
    "cli/explanation.py": {
        "explain": {
            "a page without images is a success": replace(
                "dict.fromkeys(run.missing for run in opened if run.missing)", "{}"
            ),
        },
    },
    "cli/gates.py": {
        "gates": {
            "JSON of one gate has all": replace("gate in {None, fact['name']}", "True"),
        },
    },
    "cli/recipe_flags.py": {
        "description": {
            "a new file is not described": replace("stored['files'] == _registering_files()", "True"),
        },
        "recipe_flags": {
            "a flag is missing": replace("field['name'] not in omitted", "field['name'] not in (*omitted, 'warmup')"),
        },
        "given_flags": {
            "a typed none does not count": replace(
                "getattr(flags, name) is not NOT_GIVEN", "getattr(flags, name) not in (NOT_GIVEN, None)"
            ),
        },
        "_typed": {
            "no test split cannot be typed": replace("not field.metadata['none_is_word']", "True"),
        },
        "with_flags": {
            "file wins over flags": replace(
                "dataclasses.replace(base, **given)", "dataclasses.replace(base, **{} if file else given)"
            ),
        },
    },
}
