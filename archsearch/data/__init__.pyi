from .constellation import make_constellation
from .dataset import IMAGENET_MEAN, IMAGENET_STD, ProxyData, load_fashion_mnist
from .decode import unreadable_reason
from .image_folder import IMAGE_SUFFIXES, folders_in, read_image, read_split
from .load import EMBEDDED, DataRequest, load_data
from .preparation import Preparation
from .prepared import Prepared, folder_stamp, is_prepared, open_prepared
from .sources.base import Source
from .sources.detect import is_stream, open_source
from .subset import Policy

__all__ = [
    "EMBEDDED",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "IMAGE_SUFFIXES",
    "DataRequest",
    "Policy",
    "Preparation",
    "Prepared",
    "ProxyData",
    "Source",
    "folder_stamp",
    "folders_in",
    "is_prepared",
    "is_stream",
    "load_data",
    "load_fashion_mnist",
    "make_constellation",
    "open_prepared",
    "open_source",
    "read_image",
    "read_split",
    "unreadable_reason",
]
