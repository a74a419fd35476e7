"""Debian's `update-initramfs` on our tools, beside the same on kmod's own: said, status, and every file of the initrd.

A chroot of Debian 12 with initramfs-tools and the stock kernel; first with kmod as it came, then installed by
`make install` and README's commands, with kmod's program made impossible to run, so that nothing can fall back to it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from kmodd.cli.depmod_options import FILES as _FILES
from tests import trees
from tests.vm import image

pytestmark = [pytest.mark.differential, pytest.mark.root, pytest.mark.timeout(600)]
