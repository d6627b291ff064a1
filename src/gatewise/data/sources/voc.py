"""Pascal VOC's images with masks, from the files that torchvision downloads."""

from gatewise import errors
from gatewise.data.folders import EncodedFiles, Location
from gatewise.data.sources.registry import MaskedSource, MaskedSplit, register_source
from gatewise.data.torchvision_files import default_root, open_data_set

VOC = {  # torchvision's folder for each year
    f"voc{year}": f"{'TrainVal/' if year == 2011 else ''}VOCdevkit/VOC{year}" for year in range(2007, 2013)
}
VOC_CLASSES = (
    "background,aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,person,"
    "pottedplant,sheep,sofa,train,tvmonitor"
)


@register_source("voc", help="voc2007 to voc2012", order=40)
class Voc(MaskedSource):
    """Pascal VOC segmentation of one year by name, downloaded if missing, or the folder that contains its files."""

    names = tuple(VOC)

    def matches(self, location: Location) -> bool:
        return bool(_years(location))

    def read_masked(self, location: Location) -> dict[str, MaskedSplit]:
        years = _years(location)
        if len(years) > 1:
            listed = " and ".join(str(location.path / VOC[year]) for year in years)
            raise errors.DataError(f"{location} contains several years: {listed}. Expected a folder with one of them.")
        root = location.path if location.is_folder else default_root()
        splits: dict[str, MaskedSplit] = {}
        for split, image_set in (("train", "train"), ("validation", "val")):
            options = {"year": years[0].removeprefix("voc"), "image_set": image_set}
            data = open_data_set("VOCSegmentation", root, root / VOC[years[0]], **options)
            images, masks = (EncodedFiles([str(file) for file in files]) for files in (data.images, data.masks))
            splits[split] = MaskedSplit(images, masks, tuple(VOC_CLASSES.split(",")))
        return splits


def _years(location: Location) -> list[str]:
    """Return the years at a location, each as its name; a path of that name wins over the name."""
    if location.text in VOC and not location.path.exists():
        return [location.text]
    return sorted(year for year, folder in VOC.items() if location.has_folder(folder))
