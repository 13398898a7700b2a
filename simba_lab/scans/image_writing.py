"""NIfTI images as bytes: equal images make equal files."""

from __future__ import annotations

import gzip
import io

import nibabel as nib

# deflate level: higher ones take several times longer and save a few per cent of a brain.
COMPRESSION = 4


def nifti_bytes(image: nib.Nifti1Image) -> bytes:
    """Return the content of a ``.nii.gz`` file; it follows from the image alone."""
    content = io.BytesIO()
    # Neither name nor time in the gzip header.
    with gzip.GzipFile("", "wb", COMPRESSION, content, mtime=0) as zipped:
        zipped.write(image.to_bytes())
    return content.getvalue()
