"""Tasks that start from given examples: inverse problems, edits, interpolation, reconstruction.

A `Task` is a pure function of a batch of examples; `perform` runs it over all of them.
"""

from hold_jax.loops.tasks.edit import Edit as Edit
from hold_jax.loops.tasks.latents import Interpolate as Interpolate
from hold_jax.loops.tasks.latents import Reconstruct as Reconstruct
from hold_jax.loops.tasks.restore import Colorize as Colorize
from hold_jax.loops.tasks.restore import Compress as Compress
from hold_jax.loops.tasks.restore import Deblur as Deblur
from hold_jax.loops.tasks.restore import Inpaint as Inpaint
from hold_jax.loops.tasks.restore import Superres as Superres
from hold_jax.loops.tasks.run import check as check
from hold_jax.loops.tasks.run import examples as examples
from hold_jax.loops.tasks.run import perform as perform
from hold_jax.loops.tasks.task import Task as Task
