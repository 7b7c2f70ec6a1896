"""What dynamic programs need of the Debian (or Ubuntu) machine that they were linked on: shared
libraries, the programs that they call, and of each package that something is taken from the licence
and the record by which scanners know it."""

import pathlib
import re
import subprocess

LICENCES = pathlib.Path("/usr/share/common-licenses")
# Debian keeps programs and libraries below /usr, and these names for who looks elsewhere.
MERGED = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
SEARCH = ("/usr/sbin", "/usr/bin")
# Files of packages that their programs read.
DATA = {"e2fsprogs": ["/etc/mke2fs.conf"], "xfsprogs": ["/usr/share/xfsprogs/mkfs/*.conf"]}


def output(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={"PATH": "/usr/sbin:/usr/bin", "LC_ALL": "C"})
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def below_usr(path):
    """The path's one true name: /lib/x and /usr/lib/x are the same file."""
    first, _, rest = path.lstrip("/").partition("/")
    return f"{MERGED[first]}/{rest}" if first in MERGED else path.lstrip("/")


def libraries(program):
    """Paths by the names under which the loader looks for them, the loader's own included."""
    found = {}
    for line in output("ldd", str(program)).splitlines():
        words = line.split()
        if "not found" in line:
            raise SystemExit(f"{program} needs {words[0]}, which is not installed here")
        if len(words) >= 3 and words[1] == "=>":
            # Where it is, under the name that is asked for and not that of its file.
            found[str(pathlib.Path(words[2]).with_name(words[0]))] = words[2]
        elif words[0].startswith("/"):
            found[words[0]] = words[0]
    return found


def owner(path):
    """The package that a file is of. dpkg knows some below /usr and some by their older names."""
    full = "/" + below_usr(str(path))
    names = [full, full.removeprefix("/usr")]
    done = subprocess.run(["dpkg-query", "-S", *names], capture_output=True, text=True, timeout=60)
    for line in done.stdout.splitlines():
        packages, _, name = line.rpartition(": ")
        if name in names and not packages.startswith("diversion "):
            return packages.split(", ")[0]
    raise SystemExit(f"{path} is of no package: images are made on Debian or Ubuntu, of what packages brought")


class Package:
    def __init__(self, name):
        fields = ["Package", "Version", "Architecture", "source:Package", "source:Version", "Maintainer"]
        asked = "\\n".join(f"${{{field}}}" for field in fields)
        values = output("dpkg-query", "-W", "-f", asked, name).split("\n")
        self.name, self.version, self.arch, self.source, self.source_version, self.maintainer = values
        self.copyright = pathlib.Path(f"/usr/share/doc/{self.name}/copyright").read_bytes()

    def licences(self):
        """The texts that it names of those that Debian has one copy of."""
        found = re.findall(rf"{LICENCES}/([A-Za-z]+(?:-[0-9.]*[0-9])?)", self.copyright.decode(errors="replace"))
        return sorted(name for name in set(found) if (LICENCES / name).is_file())

    def record(self):
        """What scanners of images read in /var/lib/dpkg/status.d."""
        fields = {
            "Package": self.name,
            "Status": "install ok installed",
            "Maintainer": self.maintainer,
            "Architecture": self.arch,
            "Source": f"{self.source} ({self.source_version})",
            "Version": self.version,
        }
        return "".join(f"{key}: {value}\n" for key, value in fields.items()).encode()


class System:
    """The parts of this machine that some programs need."""

    def __init__(self, program, tools):
        self.files = {}  # path in the image: path here
        self.links = {}
        owned = []
        for name in tools:
            path = next((p for d in SEARCH if (p := pathlib.Path(d, name)).exists()), None)
            if path is None:
                raise SystemExit(f"{name} is not installed here")
            real = path.resolve()
            self.files[below_usr(str(real))] = real
            if real != path:
                self.links[below_usr(str(path))] = real.name if real.parent == path.parent else str(real)
            owned.append(real)
        for needs in [program, *owned.copy()]:
            for name, path in libraries(needs).items():
                real = pathlib.Path(path).resolve()
                self.files[below_usr(name)] = real
                owned.append(real)
        names = sorted({owner(path) for path in dict.fromkeys(owned)})
        self.packages = [Package(name) for name in names]
        for package in self.packages:
            for pattern in DATA.get(package.name, []):
                for path in sorted(pathlib.Path("/").glob(pattern.lstrip("/"))):
                    self.files[str(path).lstrip("/")] = path

    def into(self, tree):
        for name, target in MERGED.items():
            tree.directory(target)
            tree.link(name, target)
        for path, real in self.files.items():
            tree.file(path, real.read_bytes(), 0o755 if real.stat().st_mode & 0o111 else 0o644)
        for path, target in self.links.items():
            tree.link(path, target)
        for package in self.packages:
            tree.file(f"usr/share/doc/{package.name}/copyright", package.copyright)
            tree.file(f"var/lib/dpkg/status.d/{package.name}", package.record())
        for name in sorted({name for package in self.packages for name in package.licences()}):
            tree.file(f"{LICENCES}/{name}", (LICENCES / name).read_bytes())
        tree.file("usr/lib/os-release", pathlib.Path("/etc/os-release").read_bytes())
        tree.link("etc/os-release", "../usr/lib/os-release")
