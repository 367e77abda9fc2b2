"""A matrix as the CPU's machine code keeps it: in bfloat16, or in the 4 or 8 bits a number that it holds."""

from __future__ import annotations

from ctypes import addressof, c_int64
from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat.kernels import cpu_quantized
from nanochat.kernels.cpu_matmul import MOST_QUANTIZED_ROWS, MOST_ROWS
from nanochat.kernels.cpu_quantized import prepared_size, unit_bytes
from nanochat.kernels.headway import longer, moving
from nanochat.kernels.native import NativeCode, Team
from nanochat.kernels.widened import Widened

_UNIT = 16  # rows of a matrix
_TICKETS_EACH = 4  # for a thread
# By whether the processor multiplies bfloat16 itself, and by planes: up to how many rows reading less pays, where there is a choice.
_MOST_ROWS_THAT_GAIN = {True: {1: MOST_ROWS, 2: 4}, False: {1: 8, 2: 2}}


class Quantizer:
    """Finds the grids that matrices lie on (see `cpu_quantized`), and has the memory that products with these want."""

    def __init__(self, code: NativeCode, team: Team, threads: int) -> None:
        self._code, self._team, self._threads = code, team, threads
        self._rooms = [torch.empty(0)]  # calls that were written down have their addresses

    def most_rows(self, planes: int) -> int:
        """Up to how many rows a product is faster where it reads so many planes than where it reads bfloat16."""
        return _MOST_ROWS_THAT_GAIN[self._code.dots][planes]

    def quantized(self, weight: Tensor, planes: int) -> Tensor | None:
        """A matrix of bfloat16 in 4 bits a plane; None where that would lose something."""
        rows, width = weight.shape
        units = rows // _UNIT
        out = torch.empty(units * unit_bytes(width, planes), dtype=torch.uint8)
        lost = (c_int64 * 1)()
        each = max(1, units // (_TICKETS_EACH * self._threads))
        args = (c_int64 * cpu_quantized.SIZE)(
            weight.data_ptr(), width, units, each, out.data_ptr(), planes, addressof(lost)
        )
        with longer(moving(4 * weight.nbytes)):
            self._code.quantize(self._team.address, args)
        return None if lost[0] else out

    def room(self, rows: int, width: int) -> int:
        """The address of what `multiply` prepares of x. It stays good; one product at a time has it."""
        needed = rows * prepared_size(width, self._code.dots)
        if len(self._rooms[-1]) < needed:
            self._rooms.append(torch.empty(2 * needed))
        return self._rooms[-1].data_ptr()


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight [out, in] with what a call needs to know of it.

    Attributes:
        weight: as it was read; None where `quantized` says as much.
        planes: of `quantized`; 0 where it is not there.
        most_rows: of a product that reads `quantized` where there is a choice.
    """

    shape: tuple[int, int]
    weight: Tensor | None
    bias: Tensor | None
    multiply: Widened
    quantizer: Quantizer
    quantized: Tensor | None = None
    planes: int = 0
    most_rows: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, in] -> [T, out], by torch."""
        assert self.weight is not None, "machine code takes all rows"
        return self.multiply(x, self.weight, self.bias)

    @property
    def most_rows_at_once(self) -> int:
        """Of a call of machine code."""
        return MOST_ROWS if self.weight is not None else MOST_QUANTIZED_ROWS

    def read(self, rows: int) -> tuple[Tensor, int]:
        """What machine code reads for so many rows, and its planes."""
        if self.weight is not None and (self.quantized is None or rows > self.most_rows):
            return self.weight, 0
        assert self.quantized is not None
        return self.quantized, self.planes
