"""JPEGs decoded, cropped and scaled on a GPU: threads read the files, nvJPEG decodes a batch.

Decoding and scaling round differently from Pillow, so results change slightly. A file that is no
whole JPEG, or one that nvJPEG cannot read (CMYK), is decoded by Pillow as usual: nvJPEG may
not notice that a file is cut off, and Pillow reports what is wrong.

NEVER RUN ON A GPU so far: the tests replace nvJPEG by a decoder of their own.
"""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kdbench.data.augmentation.crops import Box
from kdbench.data.decoding.decode import naming
from kdbench.data.scored import has_header, is_whole
from kdbench.data.streaming.image_files import ImageFiles, threads
from kdbench.errors import ConfigError

Decode = Callable[[list[Tensor]], list[Tensor]]  # files uint8 [bytes] -> RGB images uint8 [3, H, W]


def nvjpeg(device: torch.device) -> Decode:
    """Return torchvision's decoder on a GPU.

    Raises:
        ConfigError: this torchvision no longer has it.
    """
    try:  # deprecated from 0.29 on, to be removed
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError:
        raise ConfigError(
            "this torchvision has no decode_jpeg: set dataset.decoder=pillow or install an earlier"
        ) from None

    def decode(files: list[Tensor]) -> list[Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: list[Tensor] = decode_jpeg(files, ImageReadMode.RGB, device=device)
        return found

    return decode


class DeviceDecoding:
    """Images on their way into one tensor [n, 3, S, S] on a device; as `Decoding`."""

    def __init__(
        self,
        files: ImageFiles,
        rows: Sequence[int],
        box: Callable[[int, int, int], Box],  # of image i at this height and width
        decode: Decode,
        device: torch.device,
    ) -> None:
        self.files, self.rows, self.box = files, rows, box
        self.decode, self.device = decode, device
        pool = threads(torch.get_num_threads())
        self.waiting = [pool.submit(self._encoded, row) for row in rows]

    def _encoded(self, row: int) -> tuple[bytes, bool]:
        """Return an image's file, and whether the device decodes it (a whole JPEG of sane size)."""
        with naming(self.files.source.where(row)):
            content = self.files.source.encoded(row)
        return content, is_whole(content, content) and has_header(content)

    def wait(self) -> Tensor:
        """Wait for the images, and return them all decoded.

        Raises:
            KdbenchError: an image cannot be read; the first in order is named.
        """
        try:
            contents = [future.result() for future in self.waiting]
        finally:
            self.cancel()
        whole = [i for i, (_, fit) in enumerate(contents) if fit]
        images = dict(zip(whole, self._decoded([contents[i][0] for i in whole]), strict=True))
        cut = [self._cut(place, images.get(place)) for place in range(len(contents))]
        return torch.stack(cut)

    def cancel(self) -> None:
        """Cancel the images that are not being read yet."""
        for future in self.waiting:
            future.cancel()

    def _decoded(self, contents: list[bytes]) -> list[Tensor | None]:
        """Decode the images of a batch; None for each that nvJPEG cannot read."""
        files = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents]
        try:
            return [*self.decode(files)] if files else []
        except RuntimeError:  # nvJPEG does not say which file failed
            return [self._alone(file) for file in files]

    def _alone(self, file: Tensor) -> Tensor | None:
        try:
            return self.decode([file])[0]
        except RuntimeError:
            return None

    def _cut(self, place: int, image: Tensor | None) -> Tensor:
        """Cut one view [3, S, S] from an image [3, H, W], or from Pillow's decoding of its file."""
        from torchvision.transforms import functional as TF  # slow to import

        if image is None:
            with naming(self.files.source.where(self.rows[place])):
                picture = self.files.read(self.rows[place])
            image = TF.pil_to_tensor(picture).to(self.device)
        top, left, height, width, flip = self.box(place, *image.shape[1:])
        size = [self.files.image_size] * 2
        cut = TF.resized_crop(image, top, left, height, width, size, antialias=True)
        return cut.flip(-1) if flip else cut
