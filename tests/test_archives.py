"""Archives: read without unpacking, in every compression, and no more of them than their size lets expect."""

import io
import tarfile
import tracemalloc
import zlib

import pytest

from seqssgd.data.archives import read_members
from seqssgd.errors import UserError


@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
def test_members_come_out_as_they_went_in(tmp_path, compression):
    contents = {"a": b"one" * 5000, "b": b"", "c": b"three"}
    with tarfile.open(tmp_path / "x.tar", f"w:{compression}") as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(f"folder/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert read_members(tmp_path / "x.tar", {"a", "b"}, 10**6) == {"a": contents["a"], "b": b""}
    damaged = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(damaged[: len(damaged) // 3])
    with pytest.raises(UserError, match="nor a complete tar archive"):
        read_members(tmp_path / "x.tar", {"a", "b", "c"}, 10**6)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_small_archive_that_stands_for_much_is_refused_at_once(tmp_path, kind):
    """Some 300 kB for 300 MB: a file that is passed over, and headers that tarfile itself would hold in memory."""
    info = tarfile.TarInfo("a/wanted")
    info.type, info.size = kind, 300_000_000
    pack = zlib.compressobj(wbits=31)
    with open(tmp_path / "bomb.tar.gz", "wb") as file:
        file.write(pack.compress(info.tobuf(tarfile.GNU_FORMAT)))
        for _ in range(300):
            file.write(pack.compress(b"0" * 1_000_000))
        file.write(pack.flush())
    assert (tmp_path / "bomb.tar.gz").stat().st_size < 1_000_000
    tracemalloc.start()
    with pytest.raises(UserError, match="unpacks to more than 1[0-9]{2},"):
        read_members(tmp_path / "bomb.tar.gz", {"wanted", "other"}, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300_000_000
