"""The data sets of the papers: what they are called, how many images they have, where they lie.

Imports nothing, so that the command's help need not wait.
"""

# Images in each benchmark set, and other names its folder goes by.
BENCHMARK_SETS: dict[str, tuple[int, tuple[str, ...]]] = {
    "Set5": (5, ()),
    "Set14": (14, ()),
    "B100": (100, ("BSD100", "BSDS100", "BSDS100_val")),
    "Urban100": (100, ()),
    "Manga109": (109, ()),
}

# Images of the training sets whose number is known.
TRAINING_SETS = {"DIV2K": 800, "Flickr2K": 2650, "DF2K": 3450, "LSDIR": 84991}
DFLIP_SETS = ("DIV2K", "Flickr2K", "LSDIR", "DiverSeg-IP")

DIV2K_ADDRESS = "http://data.vision.ee.ethz.ch/cvl/DIV2K/"
DIV2K_ARCHIVE = "DIV2K_train_HR.zip"
