# Runs in a container on the image `python`: one of everything that can be done to files of lower layers and to new
# ones. Times are set at the end, so that the differences from the image are the same bytes in every run.
import os
import shutil
import socket
import stat

WORK = "/srv/work"
os.mkdir(WORK)
os.chdir(WORK)

# New files of every type.
with open("file", "w") as file:
    file.write("new")
os.chmod("file", 0o6751)
os.chown("file", 3000000000, 70000)
os.setxattr("file", "user.a", b"\x00\xff")
os.link("file", "hard link")
os.symlink("file", "symbolic link")
os.lchown("symbolic link", 1, 2)
os.mkfifo("fifo", 0o620)
os.mknod("device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
socket.socket(socket.AF_UNIX).bind("socket")
with open("sparse", "wb") as file:
    file.truncate(1 << 20)
    file.seek(1 << 19)
    file.write(b"middle")
os.mkdir("folder", 0o700)
open(b"folder/\xff not UTF-8", "w").close()
open("folder/" + "n" * 255, "w").close()

# Files of lower layers: changed, renamed, removed, replaced.
with open("/srv/app/main.py", "a") as file:
    file.write("# appended\n")
os.chmod("/usr/bin/python3.13" if os.path.exists("/usr/bin/python3.13") else os.path.realpath("/usr/bin/python3"), 0o700)
os.rename("/etc/debian_version", WORK + "/renamed")
os.link("/etc/os-release" if not os.path.islink("/etc/os-release") else "/usr/lib/os-release", WORK + "/linked")
os.remove("/etc/issue")
os.remove("/etc/issue.net")
os.mkdir("/etc/issue.net")
os.setxattr("/usr/share/base-files", "user.b", b"of a folder of a lower layer")
shutil.rmtree("/usr/share/base-files")
os.mkdir("/usr/share/base-files")
open("/usr/share/base-files/only this", "w").close()
shutil.rmtree("/usr/share/python3")
try:
    os.rename("/usr/share/debianutils", WORK + "/renamed folder")
except OSError:
    # Without redirected folders overlayfs says EXDEV, and who wants it copies.
    shutil.move("/srv/app", WORK + "/moved")

for top in [WORK, "/usr/share/base-files", "/etc/issue.net"]:
    for folder, folders, files in os.walk(os.fsencode(top)):
        for name in folders + files:
            os.utime(os.path.join(folder, name), ns=(7, 1500000000123456789), follow_symlinks=False)
for path in [WORK, "/usr/share/base-files", "/etc/issue.net", "/usr/share", "/usr/bin", "/usr/lib", "/usr", "/etc", "/srv", "/"]:
    os.utime(path, ns=(7, 1500000000987654321))
print("changed")
