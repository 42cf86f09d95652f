"""`python datasets/check.py --help`: says which data sets are there; see data/dataset_check.py."""

import sys

from lt_detectron2.data.dataset_check import main

if __name__ == "__main__":
    sys.exit(main())
