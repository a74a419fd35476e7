"""Explain why the kernel refused a module: errno and `KernelFacts` in, `LoadError` out.

Levels follow systemd's module-util.c: ENODEV is notice, ENOENT warning, refusal by the kernel command line info; all
others are error. Meanings of errno: kernel/module/main.c and kernel/module/signing.c.
"""

from __future__ import annotations

import errno as errors

from kmodd.dataclass import dataclass
from kmodd.planning.outcome import LoadError
from kmodd.planning.record import ERR, INFO, NOTICE, WARNING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Lockdown = Literal["", "none", "integrity", "confidentiality"]
    """Mode of kernel_lockdown(7); empty: not supported, or unknown."""
else:
    Lockdown = str


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """Settings of the kernel that prevent loading, as far as they are readable."""

    modules_disabled: bool = False
    """kernel.modules_disabled=1: no module can be loaded or removed until the next boot."""
    lockdown: Lockdown = ""
    sig_enforce: bool = False
    """Only signed modules are loaded (module.sig_enforce, or CONFIG_MODULE_SIG_FORCE)."""
    module_blacklist: tuple[str, ...] = ()
    """`module_blacklist=` of the kernel command line."""
    panic_on_oops: bool = False
    """kernel.panic_on_oops=1: a crash in a module panics the machine."""


_LOADING: dict[int, tuple[int, str]] = {
    # The driver probed and found no device, which is no error.
    errors.ENODEV: (NOTICE, "no such device: the driver found no hardware"),
    errors.ENOENT: (WARNING, "unknown symbol, see the kernel log: built for another kernel, or depmod not run?"),
    errors.ENOEXEC: (ERR, "not a module for this kernel: wrong version or damaged"),
    errors.EBUSY: (ERR, "busy: another load of the module failed, or the module is being removed"),
    errors.EINTR: (WARNING, "interrupted by a signal while waiting for another load of the module"),
    errors.EBADMSG: (ERR, "module signature cannot be read: the file is damaged"),
    errors.EINVAL: (ERR, "the module or one of its parameters is invalid"),
    errors.ENOMEM: (ERR, "not enough memory"),
    errors.EACCES: (ERR, "refused by a security module (IMA, SELinux): see the audit log"),
    errors.ENOSYS: (ERR, "this kernel was built without loadable modules"),
    errors.EOPNOTSUPP: (ERR, "this kernel cannot decompress the file"),
    errors.ETXTBSY: (ERR, "the file is open for writing"),
    # From older kernels; newer ones return EKEYREJECTED for all three (signing.c, module_sig_check).
    errors.ENOKEY: (ERR, "signed with a key that the kernel does not know, and a known key is required"),
    errors.ENOPKG: (ERR, "signed with an algorithm that this kernel was built without"),
    errors.ENODATA: (ERR, "not signed, and this kernel requires a signature"),
}
_OWN = (ERR, "the module's init function failed: see the kernel log")

_REMOVING = {
    errors.EAGAIN: "the module is in use",
    errors.EBUSY: "the module is being loaded or removed, or cannot be removed at all",
    errors.ENOENT: "the module is not loaded",
    errors.EPERM: "not permitted: modules_disabled or no CAP_SYS_MODULE",
}


def of_load(module: str, errno: int, facts: KernelFacts | None) -> LoadError:
    """Return why finit_module(2) of `module` failed with `errno`. facts: None if they were not read."""
    match errno:
        case errors.EPERM:
            return LoadError(*_not_permitted(module, facts))
        case errors.EKEYREJECTED:
            return LoadError(ERR, _key_rejected(facts))
        case _:
            return LoadError(*_LOADING.get(errno, _OWN))


def _not_permitted(module: str, facts: KernelFacts | None) -> tuple[int, str]:
    """Return level and words for EPERM; of several causes, the most specific, then the most permanent one."""
    if facts is None:
        return ERR, "not permitted: module_blacklist=, modules_disabled, lockdown or no CAP_SYS_MODULE"
    if module in facts.module_blacklist:  # compared byte by byte (kernel/module/main.c, blacklisted)
        return INFO, f"forbidden by module_blacklist={module} on the kernel command line"
    if facts.modules_disabled:
        return NOTICE, "no module can be loaded until the next boot: kernel.modules_disabled=1 is set"
    if facts.lockdown in ("integrity", "confidentiality"):
        return ERR, (
            f"the kernel is locked down ({facts.lockdown}) and loads only modules signed with a key that it knows: "
            "sign the module and enrol the key, see kernel_lockdown(7)"
        )
    return ERR, "not permitted: no CAP_SYS_MODULE, or a security module (LoadPin, SELinux) refused: see the kernel log"


def _key_rejected(facts: KernelFacts | None) -> str:
    if facts is None:
        return "signature missing, unknown or wrong, and this kernel requires one"
    if facts.sig_enforce:
        return (
            "not signed, or signed with an unknown key, and a known key is required (module.sig_enforce): "
            "sign the module and enrol the key"
        )
    return "signature wrong or key revoked: the file was changed after it was signed, or must not be used"


def of_removal(errno: int, facts: KernelFacts | None) -> LoadError:
    """Return why delete_module(2) failed with `errno`. facts: None if they were not read."""
    if errno == errors.EPERM and facts and facts.modules_disabled:
        return LoadError(NOTICE, "no module can be removed until the next boot: kernel.modules_disabled=1 is set")
    return LoadError(ERR, _REMOVING.get(errno, ""))
