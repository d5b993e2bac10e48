#!/usr/bin/env python3
"""Writes GRUB's BIOS boot code into a disk image, without a loop device.

bios_boot.py DISK BOOT_IMG CORE_IMG FIRST_SECTOR SECTORS

What grub-bios-setup does, for a core that lies in one piece in a BIOS boot partition:
boot.img goes into the MBR's code area and is told the sector of the core (8 bytes at 0x5c);
the core's first sector is told the sector of its second one (8 bytes at 0x1f4).
Source: GRUB manual, "BIOS installation", and grub-core/boot/i386/pc/{boot,diskboot}.S.
"""

import struct
import sys

SECTOR = 512
# The MBR's code area ends where the disk signature and the partition table begin.
CODE_AREA = 440
KERNEL_SECTOR = 0x5C
# The two bytes that boot.S leaves for the installer: without the jump it takes any drive number
# that is not a hard disk's for the first hard disk, as some BIOSes need.
DRIVE_CHECK = 0x66
BLOCKLIST_START = 0x1F4


def main():
    disk, boot, core, first, sectors = sys.argv[1:]
    first, sectors = int(first), int(sectors)
    with open(boot, "rb") as file:
        boot = bytearray(file.read())
    with open(core, "rb") as file:
        core = bytearray(file.read())
    if len(boot) != SECTOR or len(core) > sectors * SECTOR:
        sys.exit(f"boot.img has {len(boot)} bytes, core.img {len(core)}: they do not fit")
    struct.pack_into("<Q", boot, KERNEL_SECTOR, first)
    boot[DRIVE_CHECK : DRIVE_CHECK + 2] = b"\x90\x90"
    struct.pack_into("<Q", core, BLOCKLIST_START, first + 1)
    with open(disk, "r+b") as file:
        file.write(boot[:CODE_AREA])
        file.seek(first * SECTOR)
        file.write(core)


if __name__ == "__main__":
    main()
