"""What `task=` may name, beside training itself."""

from utils.tasks.check_data import check_data
from utils.tasks.compare import compare
from utils.tasks.encode import encode
from utils.tasks.export import export
from utils.tasks.interpolate import interpolate
from utils.tasks.matrix import matrix
from utils.tasks.ood import ood
from utils.tasks.reconstruct import reconstruct
from utils.tasks.sample import sample
from utils.tasks.sync import sync
from utils.tasks.test import report, test

ALL = (
    test,
    report,
    export,
    compare,
    matrix,
    sample,
    reconstruct,
    encode,
    interpolate,
    ood,
    sync,
    check_data,
)
TASKS = {task.__name__: task for task in ALL}
