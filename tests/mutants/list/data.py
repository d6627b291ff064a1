"""Mutants of gatewise.data."""

from mutants import drop_call, flip, off_by_one, remove, replace, swap

CHANGES = {
    "data/augmentation.py": {
        "Augmentation.of_picture": {
            "augmentation cannot be sent to workers": replace(
                "_InTurn((*([crop] if self.crop else []), *([policy] if self.policy else [])))",
                "lambda picture: _InTurn((*([crop] if self.crop else []), *([policy] if self.policy else [])))(picture)",
            ),
            "policy omitted": replace(
                "(*([crop] if self.crop else []), *([policy] if self.policy else []))",
                "(*([crop] if self.crop else []),)",
            ),
            "crop omitted": replace("[crop] if self.crop else []", "[]"),
        },
    },
    "data/batches.py": {
        "Batches.evaluation": {
            "evaluation drops the rest": replace(
                "zip(pixels, labels, strict=True)", "list(zip(pixels, labels))[:self.steps]"
            ),
        },
        "Batches._own": {
            "a last batch evaluated twice": replace("rank * each", "max(0, rank * each - 3)"),
        },
        "Batches._draws": {
            "seed ignored in data order": replace(
                "torch.Generator().manual_seed(seed * 1000003 + epoch)", "torch.Generator().manual_seed(epoch)"
            ),
            "epoch ignored in data order": replace(
                "torch.Generator().manual_seed(seed * 1000003 + epoch)", "torch.Generator().manual_seed(seed)"
            ),
            "seed and epoch confusable": replace("seed * 1000003", "seed", nth=1),
            "global generator used": replace(
                "torch.rand(len(samples), generator=generator)", "torch.rand(len(samples))"
            ),
            "largest move never drawn": off_by_one("2 * augmentation.padding + 1"),
            "one flip for the whole batch": replace(
                "torch.rand(len(samples), generator=generator) < 0.5",
                "(torch.rand(1, generator=generator) < 0.5).expand(len(samples))",
            ),
            "shares overlap": replace("slice(rank, None, processes)", "slice(0, None, processes)"),
            "every batch augmented alike": replace("(seed * 1000003 + epoch) * self.steps + step", "0"),
            "start of an epoch ignored": replace("step >= start", "True"),
            "offsets not drawn for skipped batches": replace("range(self.steps)", "range(start, self.steps)"),
        },
        "Batches._normalised": {
            "not channels_last": remove("memory_format=torch.channels_last", nth=2),
        },
        "_DecodedBatches.__getitem__": {
            "policies depend on earlier draws": remove("seed_generators(draw.number)"),
            "workers seed themselves": remove("seed_generators(draw.number)"),
        },
        "_augmented": {
            "flip upside down": replace("images.flip(3)", "images.flip(2)"),
        },
        "shift": {
            "shift transposed": replace(
                "windows[torch.arange(len(images), device=images.device), :, offsets[0], offsets[1]]",
                "windows[torch.arange(len(images), device=images.device), :, offsets[1], offsets[0]]",
            ),
        },
    },
    "data/decode.py": {
        "open_image": {
            "images without Pillow: no extra is named": replace(
                "_validation.import_optional('PIL.Image', 'reading images')", "__import__('PIL.Image').Image"
            ),
        },
    },
    "data/raster.py": {
        "read_raster": {
            "EXIF orientation ignored": remove("image = ImageOps.exif_transpose(image)"),
            "16 bits clipped": replace("image.mode.startswith('I')", "False"),
            "a band of a TIFF is transparency": replace("is_tiff=True", "is_tiff=False", nth=2),
            "colours of 16-bit PNG files are cut to 8 bits": replace("content.startswith(_PNG)", "False"),
        },
        "_is_turned": {
            "sizes of turned photos are those of the header": replace(
                "return picture.getexif().get(_ORIENTATION) in _TURNED", "return False"
            ),
        },
        "_deep": {
            "32-bit pixels clipped": replace("_bits(tags) != 32", "True"),
        },
        "_pillow_reads_all": {
            "only the first page of a stack is read": replace("_pages(content, tags) == 1", "True"),
        },
        "_bands_last": {
            "arrays with bands first are read as they are": replace("values.shape[0] < values.shape[2]", "False"),
        },
    },
    "data/pixel_format.py": {
        "PixelFormat.check_bands": {
            "a colour file in grey data loses its colours": replace("self.of == 1", "False"),
            "files of more bands lose some": replace("raster.bands != self.of", "raster.bands < self.of"),
            "predict advises a flag of training": replace(
                "f'{where} has colours, other images are grey. Convert it to grey, or train with --channels gray or "
                "--channels rgb.'",
                "f'{where} has colours, other images are grey. Add --channels gray, or --channels rgb.'",
            ),
        },
        "PixelFormat._scaled": {
            "ranges apply to 8 bits too": replace("ranges and kind != self.kind", "False"),
            "what is not finite is a value": replace("np.where(np.isfinite(values), scaled, 0)", "scaled"),
            "values outside a range wrap": drop_call("clip"),
        },
        "_check_16_bits": {
            "floating-point pixels accepted": replace("raster.kind == 'floats'", "False", nth=1),
        },
    },
    "data/pixel_survey.py": {
        "_measured": {
            "a range is that of the first image": replace("evenly_spaced(len(files), _RANGED)", "[0]"),
            "ranges are not by channel": replace("axis=0", "axis=None"),
        },
        "_with_ranges": {
            "8 bits are stretched": replace("kind == 'bytes'", "False"),
        },
    },
    "data/band_image.py": {
        "BandImage.varied": {
            "each band is cropped elsewhere": remove("random.setstate(state)"),
        },
    },
    "data/folders.py": {
        "Location.__init__": {
            "two letters of the paths below the working folder are cut off": replace(
                "path if path.parts else path.absolute()", "path"
            ),
        },
        "Location._listing": {
            "circular links are followed": remove("inside.remove(name)"),
            "folder without permission ignored": remove(
                "omitted[relative(str(error.filename))] = ': no permission to read this folder'"
            ),
        },
        "Location._below": {
            "a problem elsewhere stops the reading": replace("_is_below(folder, start)", "True", nth=1),
        },
        "Location._files": {
            "files that are no images are images": replace("not is_image(name)", "False"),
            "names in another encoding are read": replace("_is_in_other_encoding(start + name)", "False"),
        },
        "_is_below": {
            "a folder whose name continues is inside": replace("start + os.sep", "start"),
        },
    },
    "data/images.py": {
        "EncodedImages.__getitem__": {
            "mixed sizes accepted": replace("tuple(image.shape) != self.shape", "False"),
        },
        "Dataset.augmentation": {
            "digits augmented by flip": replace("{move, 'flip'} if self.flip else {move}", "{move, 'flip'}"),
        },
        "mean_and_deviation": {
            "deviation without root": replace("(square - mean.square()).clamp(min=0).sqrt()", "square - mean.square()"),
        },
    },
    "data/labels.py": {
        "_named": {
            "labels without a class accepted": replace("0 <= index < len(split.classes)", "0 <= index"),
            "negative label accepted": replace("0 <= index < len(split.classes)", "index < len(split.classes)"),
        },
        "_texts": {
            "whole numbers are written as fractions": replace("int(label)", "label"),
        },
        "_as_integers": {
            "whole numbers of a CSV are written as fractions": replace("change.get(text, text)", "text"),
            "classes of an older run are renamed": replace("fractions - set(known)", "fractions"),
            "versions such as 1.0 and 1.1 are renamed": replace(
                "not all(text.endswith('.0') for text in fractions)", "False"
            ),
        },
        "Interpreter._delimiter": {
            "labels of validation images are divided otherwise": replace(
                "('train', *splits)", "('validation', *splits)"
            ),
        },
        "Interpreter._divided": {
            "classes of two words are divided": replace(
                "[cell] if cell in whole else _parts(cell, delimiter)", "_parts(cell, delimiter)"
            ),
        },
        "Interpreter._indexed": {
            "unknown labels are dropped without a word": drop_call("say", nth=1),
        },
        "LabelledSplit.is_labelled": {
            "test images without labels are read": replace("part not in none and part == part", "True"),
        },
        "_numbers": {
            "images may have different counts of numbers": replace("len(numbers) != count", "False"),
        },
        "_numbers_in": {
            "several numbers in one cell are none": replace("part.split(delimiter)", "[part]"),
            "infinite labels are numbers": replace("math.isfinite(number)", "number == number"),
        },
        "_look_divided": {
            "names of two words are two labels": replace("alone and len(parts) < len(cells)", "True"),
        },
        "Interpreter._check_known": {
            "a class of validation alone is accepted": replace("if unknown:\n    ...", "if False:\n    ..."),
            "classes of splits not compared": replace("unknown and len(unknown) == len(lacking)", "False"),
        },
        "_ordered": {
            "numbers are sorted as text": replace("key=int", "key=str"),
        },
    },
    "data/reading.py": {
        "_check_split": {
            "validation images can be left out": replace("value in {None, NO_SPLIT}", "value is None"),
        },
    },
    "data/splitting.py": {
        "held_out": {
            "groups are divided": replace("members[group].append(index)", "members[index].append(index)"),
            "the order of the files decides": replace("f'{purpose}{seed}/{first}'", "f'{purpose}{seed}/'"),
            "the seed changes nothing": replace("f'{purpose}{seed}/{first}'", "f'{purpose}/{first}'"),
        },
        "strata_of": {
            "each tenth of few numbers holds out an image": replace(
                "min(_BINS, int(fraction * len(values) + 0.5))", "_BINS"
            ),
        },
        "_Chosen._free": {
            "a class may lose all training images": replace(
                "all((self._left[s] > 1 for s in self._counts[group]))", "True"
            ),
        },
        "_Chosen.fill_strata": {
            "rare classes are not held out": replace("self._left[stratum] == groups > 1", "False"),
            "an image is held out for its common labels": replace(
                "min(count, key=self._rarity.__getitem__)", "max(count, key=self._rarity.__getitem__)"
            ),
            "rare labels hold out too many images": replace("self._short > 0", "True"),
        },
        "_Chosen.fill_total": {
            "parts of an image are not held out": replace("self._short <= 0", "True"),
            "a class is disturbed again and again": replace("now > loss + _ROUNDING", "False"),
        },
        "named_splits": {
            "test images are not scored": replace("('validation', 'test')", "('validation',)"),
        },
    },
    "data/grouping.py": {
        "keys_of": {
            "the split depends on where the data lies": replace("_relative(name, start)", "name"),
        },
        "same_bytes": {
            "files with equal ends are the same": replace("size <= 2 * _END", "True"),
        },
        "_together": {
            "files of one size are the same": replace("of(files[index] or '')", "b''"),
        },
        "_ends": {
            "only the start of a file is compared": replace("start += os.read(opened, _END)", "pass"),
        },
        "copies": {
            "copies are recognised across labels": replace("labels[index]", "0"),
        },
        "joined": {
            "groups are not joined through others": replace("first = root(indices[0])", "first = indices[0]"),
        },
    },
    "data/division.py": {
        "_held_out": {
            "images are held out of data that has validation images only": replace(
                "isinstance(reading, OtherReading) and reading.stands_for_all", "False"
            ),
        },
        "divide": {
            "held-out images are trained on": drop_call("difference"),
        },
        "_Everything.leaks": {
            "a split.csv with leaks cannot be read": replace("location.reading.group is not None", "True"),
        },
        "_Everything._check_named": {
            "a group may be in two splits": replace("other != split", "False"),
        },
        "_Everything.conflicts": {
            "only the first files with different labels are named": replace("different[:_NAMED]", "different[:1]"),
        },
        "Division.check_same": {
            "changed files continue a division": replace("(text := read_text(file)) == self.csv", "True"),
        },
    },
    "data/inventory.py": {
        "take_inventory": {
            "a check stops at many broken images": replace("_WithAnyBroken", "Reading"),
            "broken images are not named as the reason": remove("skipping.load()"),
        },
        "_pixel_counts": {"ignored pixels are not counted": replace("int(counts[IGNORED])", "0")},
        "Inventory._shares": {
            "shares of all pixels, also of those that are ignored": replace(
                "totals if name == _IGNORED else kept", "totals"
            )
        },
        "Inventory._largest": {
            "check finds the constant answer in validation labels": replace("train[label]", "validation[label]"),
        },
    },
    "data/layout.py": {
        "split_of": {
            "only whole names are splits": replace("_BETWEEN.split(name.lower())", "[name.lower()]"),
            "names are read in lower case only": replace("name.lower()", "name"),
        },
        "split_folders": {
            "a class called train is a split": replace("if not others:\n    ...", "return by_split(location, named)"),
        },
    },
    "data/table_files.py": {
        "_separated": {
            "empty rows shift the numbers of others": replace(
                "lines = [(number, row) for number, row in lines if any(row)]",
                "lines = list(enumerate((row for _, row in lines if any(row)), 1))",
            ),
            "a line with the delimiter is the header": replace("re.match('sep=(.)\\\\r?\\\\n', text)", "None"),
        },
        "read_table": {"a list of objects is no table": replace("suffix == '.json'", "False")},
        "_named_folder": {
            "the data of a recipe is looked for in the working folder": replace(
                "Path(started_in, found)", "Path(found)"
            ),
        },
        "ImageFolder.find": {
            "a path out of the folder is an image in it": replace("text.startswith('../')", "False", nth=1),
        },
        "folded": {
            "accents in another form are other names": replace("unicodedata.normalize('NFC', text)", "text"),
        },
        "ImageFolder.__init__": {
            "ids without suffix are not found": remove("self._by_name[name.rpartition('.')[0]].append(path)"),
        },
    },
    "data/image_column.py": {
        "_signs": {
            "row numbers name images as well as names of files": replace(
                "(2 * sum(is_image(str(cell)) for cell in first) > len(first)) - (column.lower() in INDEX)", "0"
            ),
        },
        "check_not_several": {
            "the first of two columns that name other images is read": replace("others != images", "False"),
        },
    },
    "data/table_layout.py": {
        "tables_of": {
            "the last table of a split wins": replace(
                "by_split(location, tables)", "{split_of(name): name for name in tables}"
            ),
        },
        "_splits": {
            "a column of splits with an empty cell is ignored": replace(
                "not known or further_columns([column], reading)", "True"
            ),
        },
        "splits_of": {
            "only the first column of splits counts": replace(
                "zip(*found.values(), strict=True)", "zip(list(found.values())[0], strict=True)"
            ),
        },
        "add_splits": {
            "a table replaces what a column of splits gave": replace("role in read", "False"),
        },
        "common_folder": {
            "names are relative to the images of the first table": replace("len(set(folders)) == 1", "True"),
        },
        "_check_apart": {
            "two images without their folders are one": replace("first != cell", "False"),
        },
    },
    "data/broken.py": {
        "without_broken": {
            "any number of broken images is left out": replace("len(broken) > max(1, _MOST * total)", "False"),
        },
    },
    "data/load.py": {
        "_of_each": {
            "images that stand for two splits are scored twice": replace("made[id(split)]", "make(split)"),
        },
        "PairSource.load": {
            "crop_size is lost": remove("crop_size=self.crop_size"),
        },
        "_read_and_divided": {
            "a class without validation images is not named": remove("_say_missing_classes(location, divided)"),
        },
        "_check_images": {
            "images without a label accepted": replace("images != labels", "False"),
        },
        "_decoded_if_small": {
            "everything decoded": replace(
                "images if large and loading == 'auto' else images.decoded()", "images.decoded()"
            ),
        },
        "load_pairs": {
            "masks of other data have classes of their own": replace(
                "if meaning is None:\n    ...", "if True:\n    ..."
            ),
            "many pairs are held": replace(
                "len(pairs) <= _HELD_PAIRS and len(pairs) * math.prod(pairs.shape) <= _MEMORY_LIMIT",
                "len(pairs) * math.prod(pairs.shape) <= _MEMORY_LIMIT",
            ),
            "the classes are those of the training masks": replace("('train', 'validation', 'test')", "('train',)"),
            "streamed pairs are held": replace("loading == 'memory' or (loading == 'auto' and few)", "True"),
        },
    },
    "data/masks.py": {
        "MaskEncoding.check_names": {
            "masks of other classes are scored": replace("tuple(names) != self.classes[:len(names)]", "False"),
        },
        "MaskEncoding.warn_of_values": {
            "objects of 255 are ignored pixels": replace("len(found) == 2", "False"),
            "masks without objects give a warning": replace("len(found) == 2", "True"),
        },
        "named_classes": {
            "a mark at the head of classes.txt stays": drop_call("removeprefix"),
            "blank lines at the end are classes": drop_call("rstrip"),
        },
        "checked_names": {
            "a class without a name": replace("if not name:\n    ...", "if False:\n    ..."),
            "class_names are not stripped": replace("(name.strip() for name in names)", "names"),
        },
        "decode_mask": {
            "palette masks are read as colours": replace(
                "np.asarray(image)", "np.asarray(image.convert('L') if image.mode == 'P' else image)"
            ),
            "16-bit masks cut to 8 bits": replace("np.asarray(image)", "np.asarray(image).astype(np.uint8)"),
            "JPEG masks accepted": replace("{'JPEG', 'MPO', 'GIF'}", "{'MPO', 'GIF'}"),
            "MPO masks accepted": replace("{'JPEG', 'MPO', 'GIF'}", "{'JPEG', 'GIF'}"),
            "GIF masks accepted": replace("{'JPEG', 'MPO', 'GIF'}", "{'JPEG', 'MPO'}"),
        },
        "MaskEncoding.__post_init__": {
            "the ignored class can be the foreground": replace("self._counted", "self.classes", nth=1),
            "256 classes accepted": replace("len(self.classes) > IGNORED", "len(self.classes) > IGNORED + 1"),
        },
        "MaskEncoding._indices": {
            "classes after the ignored one are not shifted": replace("self._counted.index(name)", "value"),
        },
        "MaskEncoding.__call__": {
            "values above the classes are ignored": replace("if len(unknown):\n    ...", "if False:\n    ..."),
            "negative values wrap": replace("(indices < 0) | (values < 0)", "indices < 0"),
        },
        "infer_mask_encoding": {
            "salient objects are a class each": replace("values == [0, IGNORED]", "False"),
            "the ignored value counts as a class": replace(
                "(value for value in values if value != ignored)", "(value for value in values)"
            ),
        },
        "_check_indices": {
            "soft masks are classes": replace("2 * flat < between", "False"),
            "many classes are soft": replace("2 * flat < between", "True"),
        },
        "_thresholded": {
            "the threshold is lost": remove("threshold=threshold"),
        },
        "_sampled": {
            "only the first masks are read for the values": replace(
                "evenly_spaced(len(masks), _SAMPLED_MASKS)", "range(min(len(masks), _SAMPLED_MASKS))"
            ),
            "all masks are read for the values": replace(
                "evenly_spaced(len(masks), _SAMPLED_MASKS)", "range(len(masks))"
            ),
        },
    },
    "data/pair_batches.py": {
        "SegmentationBatches.__init__": {
            "padding is black": replace("-self._shift", "0 * self._shift"),
            "the mean of padding is cut": drop_call("round"),
        },
        "SegmentationBatches.training": {
            "start is forgotten": replace(
                "self._draws(epoch, seed, augmentation, start)", "self._draws(epoch, seed, augmentation, 0)"
            ),
            "masks stay bytes": drop_call("long"),
        },
        "SegmentationBatches.evaluation": {
            "evaluation mixes sizes": replace(
                "len(waiting) >= most or pair[1].shape != waiting[0][1].shape", "len(waiting) >= most"
            ),
            "evaluation drops the last batch": remove("if waiting:\n    ..."),
        },
        "_WholeImages.__getitem__": {
            "evaluation shows crops": replace(
                "self.pairs[index]",
                "tuple((part[..., :self.pairs.crop_size[0], :self.pairs.crop_size[1]] for part in self.pairs[index]))",
            ),
            "errors of evaluation come as tracebacks": replace("errors.DataError", "OSError"),
        },
        "_RandomCrops.__getitem__": {
            "workers use their initial generators": remove("seed_generators(draw.number)"),
        },
        "_RandomCrops._augmented": {
            "the image is mirrored alone": drop_call("mask.flip(1)"),
            "the mask is flipped upside down": replace("mask.flip(1)", "mask.flip(0)"),
            "all pairs are mirrored": replace("self.augmentation.flip and flips", "self.augmentation.flip"),
            "scales are uniform": replace("math.exp(_between(*map(math.log, SCALES)))", "_between(*SCALES)"),
            "rows and columns are scaled by two factors": flip("height * factor"),
            "crops lie on the diagonal": replace("(_between(0, 1), _between(0, 1))", "(0.5, 0.5)"),
            "different sizes are accepted until stacked": replace("tuple(mask.shape) != self.pairs.shape[1:]", "False"),
        },
        "cropped": {
            "crops keep off the edges": replace("min(left, int(share * (left + 1)))", "round(share * left)"),
            "the mask is cropped elsewhere": replace(
                "mask[taken[0], taken[1]]", "mask[:placed[0].stop - placed[0].start, :placed[1].stop - placed[1].start]"
            ),
            "padding counts as class 0": replace("mask.new_full(size, IGNORED)", "mask.new_full(size, 0)"),
        },
    },
    "data/pairs.py": {
        "SegmentationSplit.__getitem__": {
            "held pairs are decoded again": replace(
                "self._held[index] if self._held else self._decoded(index)", "self._decoded(index)"
            ),
        },
        "SegmentationSplit._decoded": {
            "sizes are not compared": replace("mask.shape != image.shape[1:]", "mask.numel() != image[0].numel()"),
        },
        "scaled_to": {
            "the longer side is scaled": replace("side / min(height, width)", "side / max(height, width)"),
        },
        "resized": {
            "scaled to less than torch can": replace("(max(2, size[0]), max(2, size[1]))", "size"),
            "masks are scaled with plain nearest": replace("nearest", "type(nearest).NEAREST"),
            "masks are scaled bilinearly": replace("nearest", "type(nearest).BILINEAR"),
            "images are scaled without antialiasing": flip("True"),
        },
        "SegmentationDataset.size": {
            "the size is that of training": replace("self.validation", "self.train"),
        },
        "SegmentationDataset.augmentation": {
            "scale goes without crop": replace("'scale' in geometry and 'crop' not in geometry", "False"),
            "auto does not scale": replace("{'scale', 'crop', 'flip'}", "{'crop', 'flip'}"),
            "policies accepted": replace("policy or 'shift' in geometry", "'shift' in geometry"),
        },
        "SegmentationDataset._statistics": {
            "sampled pairs are the first": replace(
                "evenly_spaced(len(self.train), _SAMPLE)", "range(min(len(self.train), _SAMPLE))"
            ),
        },
        "SegmentationDataset.frequencies": {
            "frequencies are of all images": replace("torch.where(pixels > 0, pixels.sum(), 0)", "pixels.sum()"),
            "frequencies count ignored pixels": replace("mask != IGNORED", "mask != 254"),
        },
    },
    "data/sources/arrays.py": {
        "_leave_out": {
            "validation images without labels are left out": replace("split != 'test'", "False"),
        },
        "_labels": {
            "numbers of an image are indices of classes": replace("kind == 'number'", "False"),
        },
        "Arrays.read_labelled": {
            "the last array of a split wins": replace(
                "kind in splits.setdefault(split, {})", "splits.setdefault(split, {}) and False"
            ),
        },
    },
    "data/sources/tables.py": {
        "_LabelColumns.as_in_training": {
            "other columns of test images are labels": replace("set(labels) <= set(table.columns)", "True"),
        },
        "_check_one_split": {
            "an image may be in two splits": replace("splits[row] != splits[other]", "False"),
        },
    },
    "data/sources/mask_tables.py": {
        "MaskTables.read_masked": {
            "test images without masks stop the reading of tables": replace(
                "columns is None and split == 'test'", "False"
            ),
        },
    },
    "data/sources/cifar.py": {
        "Cifar.read_labelled": {
            "planes of CIFAR transposed": replace(
                "torch.from_numpy(data.data).permute(0, 3, 1, 2)", "torch.from_numpy(data.data).permute(0, 3, 2, 1)"
            ),
        },
    },
    "data/sources/class_folders.py": {
        "ClassFolders.matches": {
            "images of one class cannot be scored": replace("isinstance(reading, OtherReading)", "False"),
        },
        "_read_split": {
            "masks are classes": replace("singular <= _OF_MASKS | {'image', 'img'} and singular & _OF_MASKS", "False"),
            "an empty folder is a class": replace(
                "{name: files for name, files in grouped.items() if files}", "dict(grouped)"
            ),
        },
    },
    "data/sources/digits.py": {
        "Digits": {
            "digits mirrored": flip("False"),
        },
        "Digits.read_labelled": {
            "digits not stratified": remove("stratify=bunch.target"),
        },
    },
    "data/sources/pair_folders.py": {
        "PairFolders.read_masked": {
            "test images without masks stop the reading of folders": replace(
                "not location.images(*layouts['test'][1])", "False"
            ),
        },
        "_matched": {
            "a mask without an image is ignored": replace(
                "sorted(own.keys() ^ other.keys())", "sorted(own.keys() - other.keys())"
            ),
            "images are matched in the order of files": replace(
                "for stem in sorted(own):\n    yield (own[stem], other[stem])",
                "for stem, mask in zip(sorted(own), sorted(other, reverse=True)):\n    yield (own[stem], other[mask])",
            ),
        },
        "_by_stem": {
            "duplicate stems win silently": replace("stem in files", "False"),
            "endings of names stay": replace("end.sub('', stem)", "stem"),
            "only one level of files is read": replace(
                "sorted(paths)",
                "sorted(path for path in paths if Path(path).parent == folder)",
            ),
        },
    },
    "data/sources/parquet.py": {
        "_leave_out_test": {
            "test files without labels stop the reading": replace("'test' in splits", "False"),
        },
        "_labelled": {
            "first file only": replace("[label for part in parts for label in part[1]]", "parts[0][1]"),
            "class names of files not compared": replace("part[2] != names", "False"),
        },
        "_metadata_names": {
            "metadata of a table may be anything": replace(
                "not isinstance(names, list) or not all((isinstance(name, str) for name in names))",
                "False and (not all((isinstance(name, str) for name in names)))",
            ),
        },
        "_column": {
            "columns of numbers accepted": replace(
                "not any((kind in str(table.schema.field(found).type) for kind in ('struct', 'binary', 'string')))",
                "False and (not any((kind in str(table.schema.field(found).type) for kind in ('struct', 'binary', 'string'))))",
            ),
        },
    },
    "data/sources/registry.py": {
        "_sources": {
            "sources are asked in the order of their files": replace(
                "sorted(_registry.values(), key=lambda source: source.order)", "_registry.values()"
            ),
        },
        "find_source": {
            "installed sources are not imported": remove("_load_plugins()"),
            "a folder with the name of a data set is not noted": replace("location.path.exists()", "False", nth=1),
        },
    },
    "data/sources/voc.py": {
        "Voc.read_masked": {
            "two years in one folder": replace("len(years) > 1", "False"),
            "VOC trains on its validation images": replace("('train', 'train')", "('train', 'trainval')"),
            "VOC's classes are shifted": replace('tuple(VOC_CLASSES.split(","))', 'tuple(VOC_CLASSES.split(",")[1:])'),
        },
        "_years": {
            "a download folder is preferred to a user's folder": replace(
                "location.text in VOC and (not location.path.exists())", "location.text in VOC"
            ),
        },
    },
    "data/tables.py": {
        "": {
            "labels treated as masks": swap("('mask', 'label', 'annotation', 'segmentation')"),
        },
    },
    "data/torchvision_files.py": {
        "open_data_set": {
            "VOC is downloaded again": replace("not exists", "True"),
        },
    },
    "data/corruptions.py": {
        "corrupted": {
            "all images have the same noise": replace(
                "f'{corruption} {strength} {number}'", "f'{corruption} {strength}'"
            ),
            "small images with large constants": replace("min(image.shape[:2]) < SMALL", "False"),
        },
        "_seeded": {"numpy's generator not restored": remove("np.random.set_state(state)")},
        "_frost": {
            "frost smaller than a narrow image": replace(
                "max(0.2, *(want / have for have, want in zip(picture.shape, x.shape[:2], strict=False)))", "0.2"
            ),
        },
    },
}
