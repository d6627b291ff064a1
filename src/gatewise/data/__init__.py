"""Data sets: load labelled images or images with masks, in memory or streamed, and make reproducible batches."""

from gatewise.data.augmentation import Augmentation as Augmentation
from gatewise.data.batches import Batches as Batches
from gatewise.data.batches import StreamedBatches as StreamedBatches
from gatewise.data.batches import seed_generators as seed_generators
from gatewise.data.batches import shift as shift
from gatewise.data.images import Dataset as Dataset
from gatewise.data.images import EncodedImages as EncodedImages
from gatewise.data.images import Images as Images
from gatewise.data.load import LOADINGS as LOADINGS
from gatewise.data.load import DataSource as DataSource
from gatewise.data.load import PairSource as PairSource
from gatewise.data.load import load_dataset as load_dataset
from gatewise.data.load import load_pairs as load_pairs
from gatewise.data.masks import IGNORED as IGNORED
from gatewise.data.masks import evenly_spaced as evenly_spaced
from gatewise.data.masks import with_background as with_background
from gatewise.data.pair_batches import SegmentationBatches as SegmentationBatches
from gatewise.data.pair_batches import make_batches as make_batches
from gatewise.data.pairs import SegmentationDataset as SegmentationDataset
from gatewise.data.pairs import SegmentationSplit as SegmentationSplit
from gatewise.data.pairs import scaled_to as scaled_to
