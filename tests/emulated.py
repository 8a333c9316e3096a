"""Runs programs under Linux on an emulated x86-64 processor with AVX-512, for machines that have none.

`python tests/emulated.py FOLDER KERNEL RESULTS PROGRAM ...` boots the Linux of KERNEL (a vmlinuz) on Bochs, runs each
program, which must be linked statically, prints what they print, and writes JUnit into RESULTS. FOLDER is for what it
makes on the way. It fails if a program does, or if Linux does not offer AVX-512.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

MINUTES = 20
# Later models of Bochs 2.7 stop while Linux starts.
MACHINE = """\
cpu: model=corei7_skylake_x, count=1, ips=50000000, ignore_bad_msrs=1
memory: guest=512, host=512
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/vgabios/vgabios.bin
ata0-master: type=cdrom, path={disc}, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=/dev/stdout
display_library: rfb, options="timeout=0"
clock: sync=none
speaker: enabled=0
sound: waveoutdrv=dummy
log: {log}
panic: action=fatal
error: action=ignore
info: action=ignore
"""
# Bochs 2.7 gives sizes of what XSAVEC and XSAVES store with which Linux turns AVX off; without these two it does not.
BOOT = """\
DEFAULT linux
LABEL linux
  KERNEL /vmlinuz
  APPEND initrd=/initrd console=ttyS0 quiet nokaslr mitigations=off clearcpuid=321,323
"""
INIT = """\
#!/busybox sh
/busybox mount -t proc proc /proc
/busybox grep -q 'avx512f .*avx512vl' /proc/cpuinfo; /busybox echo "ended avx512: $?"
for program in /programs/*; do
  $program; /busybox echo "ended ${program##*/}: $?"
done
/busybox sleep 1
/busybox poweroff -f
"""
TOOLS = ("bochs", "busybox", "cpio", "timeout", "xorriso")
ISOLINUX = (Path("/usr/lib/ISOLINUX/isolinux.bin"), Path("/usr/lib/syslinux/modules/bios/ldlinux.c32"))


def make_disc(folder: Path, kernel: Path, programs: list[Path]) -> Path:
    """A disc that boots the kernel, with the programs in its first file system."""
    root, content, disc = folder / "root", folder / "content", folder / "disc.iso"
    for old in (root, content):
        shutil.rmtree(old, ignore_errors=True)
    for new in ("programs", "dev", "proc"):
        (root / new).mkdir(parents=True)
    for program in programs:
        shutil.copy(program, root / "programs" / program.name)
    shutil.copy("/bin/busybox", root)
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    content.mkdir()
    for part in ISOLINUX:
        shutil.copy(part, content)
    shutil.copy(kernel, content / "vmlinuz")
    (content / "isolinux.cfg").write_text(BOOT)
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*"))).encode()
    with (content / "initrd").open("wb") as file:
        subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=root, input=names, stdout=file, check=True)
    boot = ["-b", "isolinux.bin", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"]
    subprocess.run(["xorriso", "-as", "mkisofs", "-quiet", "-o", disc, *boot, content], check=True)
    return disc


def run(folder: Path, disc: Path) -> dict[str, str]:
    """The exit status of each program that ended, while what they print is printed."""
    (folder / "bochsrc").write_text(MACHINE.format(disc=disc, log=folder / "bochs.log"))
    (folder / "commands").write_text("continue\n")  # Debian's Bochs has a debugger, which waits for one
    command = ["timeout", f"{MINUTES}m", "bochs", "-q", "-f", folder / "bochsrc", "-rc", folder / "commands"]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    ended = {}
    start = time.monotonic()
    with subprocess.Popen(command, text=True, errors="replace", **pipes) as bochs:
        for line in bochs.stdout:
            print(f"{time.monotonic() - start:4.0f} s  {line.rstrip()}", flush=True)
            if line.startswith("ended "):
                name, _, status = line.removeprefix("ended ").partition(": ")
                ended[name] = status.strip()
    return ended


def main(folder: Path, kernel: Path, results: Path, programs: list[Path]) -> int:
    """How many did not end with status 0."""
    if not programs or len({program.name for program in programs}) < len(programs):
        raise SystemExit("no programs, or two of one name")
    missing = [name for name in TOOLS if shutil.which(name) is None]
    missing += [str(path) for path in (*ISOLINUX, kernel) if not path.is_file()]
    if missing:
        raise SystemExit(f"the Makefile names the packages and KERNEL; missing: {', '.join(missing)}")
    folder.mkdir(parents=True, exist_ok=True)
    ended = run(folder, make_disc(folder, kernel, programs))
    names = ["avx512", *(program.name for program in programs)]
    failed = [name for name in names if ended.get(name) != "0"]
    suite = ET.Element("testsuite", name="emulated", tests=str(len(names)), failures=str(len(failed)))
    for name in names:
        case = ET.SubElement(suite, "testcase", name=name)
        if name in failed:
            ET.SubElement(case, "failure", message=f"status {ended.get(name, 'unknown: it did not end')}")
    results.parent.mkdir(parents=True, exist_ok=True)
    ET.ElementTree(suite).write(results)
    print(f"{len(names) - len(failed)} passed, {len(failed)} failed", *failed)
    return len(failed)


if __name__ == "__main__":
    folder, kernel, results, *programs = map(Path, sys.argv[1:])
    sys.exit(main(folder.resolve(), kernel, results, programs) > 0)
