"""Bugs in what stands between the package and spoiled files, hostile values and code in files."""

from planted.bug import Bug

BUGS = [
    Bug("a refusal shows all that came", "_validation.py", "return text if len(text) <= _LONGEST else", "return text if True else", "test_fuzz.py", "test_what_a_refusal_shows_is_one_bounded_line"),
    Bug("a refusal is as long as it likes", "errors.py", "if len(text) <= _MAX_LENGTH else", "if True else", "test_corpus.py", "test_a_refusal_is_never_longer_than_a_screen"),
    Bug("a list of lists of lists is shown whole", "_validation.py", "self.maxlevel = 3", "self.maxlevel = 30", "test_fuzz.py", "test_what_a_refusal_shows_ends_at_the_third_level"),
    Bug("any object is a network", "_validation.py", "if not isinstance(model, torch.nn.Module):", "if False:", "test_corpus.py", "test_a_call_that_went_wrong_is_refused and gates_in"),
    Bug("networks of any size are built", "_validation.py", "if count is None or count > _MOST_NUMBERS:", "if count is None:", "test_corpus.py", "test_a_network_beyond_memory_is_refused_before_it_is_built"),
    Bug("a seed may be true", "_validation.py", "    if value is not None:\n        integer_at_least(0, seed=value)", "    if False:\n        integer_at_least(0, seed=value)", "test_corpus.py", "test_a_call_that_went_wrong_is_refused and manual_seed and bool"),
    Bug("a spec opens files", "models/build.py", "        if options.get(option) and not", "        if False and not", "test_security.py", "test_no_option_of_a_spec_opens_a_file"),
    Bug("a device is read to its end", "files.py", "if not stat.S_ISREG(path.stat().st_mode):", "if False:", "test_corpus.py", "test_a_folder_in_the_place_of_a_file_is_refused"),
    Bug("deep JSON is a traceback", "files.py", "    except (ValueError, RecursionError) as error:\n        raise errors.DataError(f\"{path} is not valid JSON", "    except ValueError as error:\n        raise errors.DataError(f\"{path} is not valid JSON", "test_corpus.py", "test_a_file_that_went_wrong_is_refused_with_its_name and deep"),
    Bug("deep YAML is a traceback", "training/recipe.py", "except (yaml.YAMLError, ValueError, RecursionError)", "except (yaml.YAMLError, ValueError)", "test_corpus.py", "test_a_file_that_went_wrong_is_refused_with_its_name and deep"),
    Bug("dates of no calendar are a traceback", "training/recipe.py", "except (yaml.YAMLError, ValueError, RecursionError)", "except (yaml.YAMLError, RecursionError)", "test_corpus.py", "test_a_file_that_went_wrong_is_refused_with_its_name and date"),
    Bug("a config is not looked at", "serialization.py", "    checked_details(folder / CONFIG, config)\n", "", "test_corpus.py", "test_a_config_that_went_wrong_is_refused"),
    Bug("a deviation may be zero", "schema.py", '"std": _numbers(1e-6)', '"std": _numbers(-1e6)', "test_corpus.py", "test_a_config_that_went_wrong_is_refused and division"),
    Bug("classes need not be as many as outputs", "schema.py", ' ("classes", "num_classes")', "", "test_corpus.py", "test_a_config_that_went_wrong_is_refused and IndexError"),
    Bug("an environment need not name its hardware", "schema.py", 'if "hardware" not in _validation.mapping(name, value):', 'if _validation.mapping(name, value) is None:', "test_corpus.py", "test_metrics_that_went_wrong_are_refused and hardware"),
    Bug("scores of classes are not looked at", "schema.py", "        if score is not None:\n", "        if False:\n", "test_corpus.py", "test_metrics_that_went_wrong_are_refused and drawn"),
    Bug("metrics are not looked at", "schema.py", "                check(name, metrics[name])\n", "                pass\n", "test_corpus.py", "test_metrics_that_went_wrong_are_refused"),
    Bug("a position behind the end is taken", "training/checkpoint.py", "            _validation.number_between(0, most, **{key: progress[key]})\n", "", "test_corpus.py", "test_a_checkpoint_that_went_wrong_is_refused and behind"),
    Bug("a compaction fits any network", "execution/compaction.py", "        if not isinstance(net, GaterNet):\n            raise errors.InvalidTypeError(\n                f\"a compaction", "        if False:\n            raise errors.InvalidTypeError(\n                f\"a compaction", "test_corpus.py", "test_a_config_that_went_wrong_is_refused and CifarResNet"),
    Bug("links that lead back are followed", "data/folders.py", "    _refuse_circles(folder)\n", "    _ = _refuse_circles\n", "test_corpus.py", "test_links_that_lead_back_are_refused"),
    Bug("metadata of a table may be anything", "data/tables.py", "    if not isinstance(found, list) or", "    if False and", "test_corpus.py", "test_metadata_of_another_form_are_refused_or_passed_over"),
    Bug("an archive of torch.export is opened", "exporting/reader.py", '    if file.suffix != ".onnx":\n', '    if file.suffix == ".pt2":\n        return Exported(file, torch.export.load(file).module(), "")\n    if file.suffix != ".onnx":\n', "test_security.py", "test_an_archive_of_torch_export_is_not_opened"),
    Bug("weights are unpickled", "interop/reading.py", "weights_only=True)", "weights_only=False)", "test_security.py", "test_torch_load_is_told_to_open_weights_only"),
    Bug("a page takes names for code", "analysis/page.py", "autoescape=True", "autoescape=False", "test_security.py", "test_names_that_are_scripts_do_not_run_and_are_read"),
]  # fmt: skip
