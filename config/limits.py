"""Upper bounds on what untrusted input may cost, with their reasons."""

LARGEST_WHOLE = 2**31 - 1  # no count is larger; keeps absurd integers out of files and kernels
LARGEST_YAML = 1_000_000  # bytes; our longest YAML has 3,000
LONGEST_LINE = 10_000  # characters of a list's line: two paths, which systems end at 4,096
PATH_PARTS = 64  # folders of a list's path that are looked for; data sets nest some ten deep

CHANNELS = 1024  # of an image; hyperspectral cameras have some 200, and each one is a filter
SIDE = 2**15  # of a crop, a window or a scaled image; a square of it has four times PIXELS
SCALE = 16.0  # of a test image; the literature ends at 2
GRID = 1024  # cells along a side that features are pooled to, or that a mask of PSANet has
MODULES = 64  # mixed pooling modules; the paper has 2
BOUNDARY = 64  # pixels around a boundary that weigh more; each is a pass over the labels
WIDTH = 8.0  # factor of channels; eight times the width has 64 times the weights
WORKERS = 1024  # loader processes, of which each takes memory; large machines have some 256 CPUs
PROCESSES_PER_CPU = 4  # training processes on CPUs; more than one only wait for each other

PIXELS = 2**28  # values of a decoded image, as stripseg/__init__.py tells OpenCV
MATLAB_BYTES = 2**28  # content of a .mat file, inflated; an 8-bit label of PIXELS
MATLAB_PARTS = 2**14  # in it; labels have some 100, and a cell in a cell is a call in a call
PARQUET_BYTES = 2**28  # content of a small parquet file, as MATLAB_BYTES
PARQUET_TIMES = 1000  # the size of a larger one; pictures pack little, repeated names 100 times
PICKLE_BYTES = 2**28  # of a file of CIFAR's archives; the largest has 155 MB
PICKLE_TUPLES = 16  # in it; numpy's arrays need six, and each one may double what hashing costs

ANNOTATION_BYTES = 2**31  # of an annotation file; LVIS's largest has 1.1 GB
ANNOTATION_SHAPES = 100_000  # of one picture; the densest sets have some 2,000
ANNOTATION_FRAMES = 100_000  # of a film; an hour of 25 frames a second has 90,000
ANNOTATION_TRACKED = 4_000_000  # tracks times frames of a film: shapes that are held in memory
CROSSINGS = 2**26  # of a polygon's sides with rows of pixels: 64 million points of an outline

COMBINATIONS = 10_000  # of a sweep's grid or a study's matrix: years of training
SWEEP_VALUES = 1_000  # of one parameter; each one is loaded with the config before the first trial
SEED = 2**32 - 1  # of a sweep, as numpy's generator takes them
