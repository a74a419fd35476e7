"""Why the kernel refused: an errno and what is known of the kernel in, a `LoadError` out.

Levels as in systemd's module-util.c where it has an opinion: ENODEV notice, ENOENT warning, refused by the command line
info, else error. What each errno means: kernel/module/main.c and signing.c.
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
    """kernel_lockdown(7); empty: the kernel has none, or does not tell."""
else:
    Lockdown = str


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """What stands in the way of loading, as far as the kernel tells."""

    modules_disabled: bool = False
    """kernel.modules_disabled=1: no module any more until the next boot."""
    lockdown: Lockdown = ""
    sig_enforce: bool = False
    """Only signed modules (module.sig_enforce, or built so)."""
    module_blacklist: tuple[str, ...] = ()
    """`module_blacklist=` of the kernel command line."""
    panic_on_oops: bool = False
    """kernel.panic_on_oops=1: a module that crashes takes the machine down."""


_LOADING: dict[int, tuple[int, str]] = {
    # ENODEV is a driver that looked and found nothing of its own.
    errors.ENODEV: (NOTICE, "no such device: the driver found nothing that it drives"),
    errors.ENOENT: (WARNING, "unknown symbol, see the kernel log: built for another kernel, or depmod not run?"),
    errors.ENOEXEC: (ERR, "not a module for this kernel: wrong version or damaged"),
    errors.EBUSY: (ERR, "busy: another load of it was under way and failed, or it is going away"),
    errors.EINTR: (WARNING, "broken off by a signal while another load of it was under way"),
    errors.EBADMSG: (ERR, "its signature cannot be read: the file is damaged"),
    errors.EINVAL: (ERR, "the module or one of its parameters was refused as invalid"),
    errors.ENOMEM: (ERR, "not enough memory for it"),
    errors.EACCES: (ERR, "refused by a security module (IMA, SELinux): see the audit log"),
    errors.ENOSYS: (ERR, "this kernel was built without loadable modules"),
    errors.EOPNOTSUPP: (ERR, "this kernel cannot unpack the file"),
    errors.ETXTBSY: (ERR, "somebody is writing to the file"),
    # From older kernels; by now EKEYREJECTED stands for all three (signing.c, module_sig_check).
    errors.ENOKEY: (ERR, "signed with a key that the kernel does not know, and it demands one that it knows"),
    errors.ENOPKG: (ERR, "signed by a method that this kernel was built without"),
    errors.ENODATA: (ERR, "not signed, and this kernel demands a signature"),
}
_OWN = (ERR, "the module's own start failed with it: see the kernel log")

_REMOVING = {
    errors.EAGAIN: "somebody uses it",
    errors.EBUSY: "it is starting or ending, or it cannot be removed at all",
    errors.ENOENT: "the kernel does not have it any more",
    errors.EPERM: "not permitted: modules_disabled or no CAP_SYS_MODULE",
}


def of_load(module: str, errno: int, facts: KernelFacts | None) -> LoadError:
    """Why finit_module of `module` failed with `errno`; `facts` None: nobody asked for them."""
    match errno:
        case errors.EPERM:
            return LoadError(*_not_permitted(module, facts))
        case errors.EKEYREJECTED:
            return LoadError(ERR, _key_rejected(facts))
        case _:
            return LoadError(*_LOADING.get(errno, _OWN))


def _not_permitted(module: str, facts: KernelFacts | None) -> tuple[int, str]:
    """Several may hold at once: first what somebody meant for this very module, and what lasts longest."""
    if facts is None:
        return ERR, "not permitted: module_blacklist=, modules_disabled, lockdown or no CAP_SYS_MODULE"
    if module in facts.module_blacklist:  # compared byte by byte (kernel/module/main.c, blacklisted)
        return INFO, f"forbidden by module_blacklist={module} on the kernel command line"
    if facts.modules_disabled:
        return NOTICE, "no module can be loaded until the next boot: kernel.modules_disabled=1 was set"
    if facts.lockdown in ("integrity", "confidentiality"):
        return ERR, (
            f"the kernel is locked down ({facts.lockdown}) and takes only modules signed with a key that it knows: "
            "sign the module and enrol the key, see kernel_lockdown(7)"
        )
    return ERR, "not permitted: no CAP_SYS_MODULE, or a security module (LoadPin, SELinux) refused: see the kernel log"


def _key_rejected(facts: KernelFacts | None) -> str:
    if facts is None:
        return "signature missing, unknown or wrong, and this kernel demands one"
    if facts.sig_enforce:
        return (
            "not signed, or with a key that the kernel does not know, and it takes no other (module.sig_enforce): "
            "sign the module and enrol the key"
        )
    return "its signature is wrong or its key revoked: the file was changed after it was signed, or must not be used"


def of_removal(errno: int, facts: KernelFacts | None) -> LoadError:
    """Why delete_module failed with `errno`."""
    if errno == errors.EPERM and facts and facts.modules_disabled:
        return LoadError(NOTICE, "no module can be removed until the next boot: kernel.modules_disabled=1 was set")
    return LoadError(ERR, _REMOVING.get(errno, ""))
