"""Networks by name: CIFAR ResNets, U²-Net and segmenters are defined here, all other names are timm's."""

from gatewise.models.build import model_names as model_names
from gatewise.models.cifar_resnet import CifarResNet as CifarResNet
from gatewise.models.families import LABELS_PIXELS as LABELS_PIXELS
from gatewise.models.families import SEGMENTER as SEGMENTER
from gatewise.models.network_functions import import_network as import_network
from gatewise.models.network_functions import imported_networks as imported_networks
from gatewise.models.segmenter import Segmenter as Segmenter
from gatewise.models.segmenter import make_segmenter as make_segmenter
