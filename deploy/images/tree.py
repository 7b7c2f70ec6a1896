"""The files of an image: what a layer is made of, in an order and with owners that never vary."""

import io
import tarfile


class Tree:
    """Paths are relative to the root. Directories come by themselves."""

    def __init__(self):
        self._entries = {}  # path: (type, content or target, mode)

    def _put(self, path, entry):
        path = path.strip("/")
        if self._entries.setdefault(path, entry) != entry:
            raise ValueError(f"two different things are to be /{path}")
        parent = path.rpartition("/")[0]
        if parent:
            self.directory(parent)

    def directory(self, path):
        self._put(path, (tarfile.DIRTYPE, None, 0o755))

    def file(self, path, content, mode=0o644):
        self._put(path, (tarfile.REGTYPE, content, mode))

    def link(self, path, target):
        self._put(path, (tarfile.SYMTYPE, target, 0o777))

    def tar(self, epoch):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for path, (kind, content, mode) in sorted(self._entries.items()):
                info = tarfile.TarInfo(path)
                info.type, info.mode, info.mtime = kind, mode, epoch
                if kind == tarfile.SYMTYPE:
                    info.linkname = content
                    archive.addfile(info)
                elif kind == tarfile.DIRTYPE:
                    archive.addfile(info)
                else:
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        return out.getvalue()
