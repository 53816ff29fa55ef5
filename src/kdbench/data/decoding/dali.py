"""JPEGs decoded by NVIDIA's DALI, an extra: on the GPU where the run has one, else on the CPU.

DALI only decodes; crops are the same as with other decoders. On the CPU its pixels
are Pillow's; decoding on a GPU has NEVER BEEN RUN.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from kdbench.errors import ConfigError


class Dali:
    """A decoder of files uint8 [bytes] to RGB images uint8 [3, H, W], as `device_decode.nvjpeg`.

    Raises:
        ConfigError: DALI is not installed.
    """

    def __init__(self, device: torch.device, threads: int) -> None:
        try:
            import nvidia.dali as dali
        except ImportError:
            raise ConfigError(
                "dataset.decoder=dali needs NVIDIA's DALI: pip install 'kdbench[dali]', or set "
                "dataset.decoder=pillow"
            ) from None
        self.dali, self.device, self.threads = dali, device, threads
        self.pipeline: Any = None
        self.largest = 0  # batch size of the pipeline

    def __call__(self, files: list[Tensor]) -> list[Tensor]:
        """Decode a batch.

        Raises:
            RuntimeError: DALI cannot read one of them; it does not say which.
        """
        if self.pipeline is None or len(files) > self.largest:
            self.largest = len(files)
            self.pipeline = self.built()
        try:
            (found,) = self.pipeline.run(files=[file.numpy() for file in files])
        except Exception as error:
            self.pipeline = None  # it is unusable after an error
            raise RuntimeError(str(error)) from error
        return [self.image(one).permute(2, 0, 1) for one in found]

    def built(self) -> Any:
        """Build a pipeline for batches of at most `largest`."""
        fn, types, gpu = self.dali.fn, self.dali.types, self.device.type == "cuda"
        pipeline = self.dali.Pipeline(
            self.largest,
            self.threads,
            (self.device.index or 0) if gpu else None,
            prefetch_queue_depth=1,  # it gets one batch at a time
        )
        with pipeline:
            read = fn.external_source(name="files", dtype=types.UINT8, ndim=1)
            decoder = "mixed" if gpu else "cpu"
            pipeline.set_outputs(fn.decoders.image(read, device=decoder, output_type=types.RGB))
        pipeline.build()
        return pipeline

    def image(self, one: Any) -> Tensor:
        """Copy DALI's output [H, W, 3], which its next batch overwrites."""
        if self.device.type == "cuda":
            return from_dlpack(one).clone()
        return torch.from_numpy(np.array(one))
