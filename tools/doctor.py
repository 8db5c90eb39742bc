"""Says what is installed, what runs and what is broken: `python -m mmattn.doctor` by its path.

The file is run without importing the package, so that it can say why that fails.
"""

import runpy
from pathlib import Path

here = Path(__file__).resolve()
# In a checkout, or in the copy of it that a wheel carries below the package.
places = (here.parents[1] / 'mmattn' / 'doctor.py', here.parents[2] / 'doctor.py')
runpy.run_path(str(next(filter(Path.is_file, places))), run_name='__main__')
