"""Each row of docs/COMPAT.md names a test that shows it, and each of these tests exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

ROOT = Path(__file__).parents[2]
COMPAT = ROOT / "docs" / "COMPAT.md"

ROWS_OF_30 = "tests/differential/test_kmod_30.py::test_every_row_on_kmod_30_has_a_test"
KNOWN = "tests/differential/test_modprobe.py::test_case_on_its_own_tree"
ACTING = "tests/differential/test_acting.py::test_scenario"
DEPMOD = "tests/differential/test_depmod.py::test_situation"
ROWS = "tests/differential/test_compat_rows.py"
EXECUTE = "tests/unit/cli/test_modprobe_execute.py"

SHOWN: Mapping[str, Mapping[str, str]] = MappingProxyType({
    "modprobe: -D, -R, -c, -n with -C, -d, -S, -b, -i, -a, -q, -v": {
        "version and features in -V": KNOWN,
        "path of what is no regular file": KNOWN,
        "-v -v": KNOWN,
        "a missing dependency": KNOWN,
        "`-n` without `-v`": f"{ROWS}::test_a_dry_run_without_v_prints_nothing",
        "`--show-alias`": f"{ROWS}::test_names_of_the_unreleased_master",
        "`--show-modversions`, `--show-exports`": f"{ROWS}::test_names_of_the_unreleased_master",
        "`--root DIR`": f"{ROWS}::test_options_of_kmodd",
        "abbreviated options": f"{ROWS}::test_options_of_kmodd",
        "name in getopt's messages": f"{ROWS}::test_name_in_messages_of_getopt",
        "a damaged `.bin` index":
            "tests/unit/index/test_catalog.py::test_a_damaged_bin_is_reported_and_the_text_is_read",
        "an index that a power cut has left empty or cut": f"{ROWS}::test_an_index_that_a_power_cut_has_left_empty",
        "a tree without `.bin` files": f"{ROWS}::test_a_tree_without_bin_files",
        "/usr/lib/modules/VERSION": f"{ROWS}::test_usr_lib_modules",
        "`index.d/NAME/` below the module directory":
            "tests/unit/host/test_tree.py::test_an_extension_is_laid_over_the_tree",
        "a backslash before a pattern's first wildcard in modules.alias":
            f"{ROWS}::test_a_backslash_before_the_first_wildcard_of_an_index",
        "a name of more than 4,095 bytes": f"{ROWS}::test_a_long_name",
        "standard output that cannot be written, in every tool":
            "tests/property/test_streams.py::test_a_broken_stream_changes_nothing_but_what_is_lost",
        "control characters on a terminal, in every tool":
            "tests/unit/cli/test_streams.py::test_control_characters_of_others_do_not_reach_a_terminal",
        "`KMOD_LOG`": f"{ROWS}::test_kmod_log",
    },
    "modprobe that acts, insmod, rmmod, lsmod": {
        "the kernel's reason": f"{EXECUTE}::test_the_kernels_words_stand_behind_kmods",
        "while kmodd runs": f"{EXECUTE}::test_what_goes_through_the_daemon",
        "journal": f"{EXECUTE}::test_each_module_is_told_once",
        "`--no-daemon`, `--json`": f"{EXECUTE}::test_json_is_of_the_schema_of_explain",
        "`modprobe -r -w` after its timeout": f"{EXECUTE}::test_waiting_asks_until_it_goes_and_says_when_it_does_not",
        "`--remove-holders` without `-r`": ACTING,
        "holders of holders": ACTING,
        "`modprobe -r` of an alias to nothing": ACTING,
        "a cycle of softdeps with `-r`": f"{EXECUTE}::test_softdeps_that_go_round_end",
        "`/sys/module/NAME` of what is neither a module nor in modules.builtin":
            "tests/differential/test_acting.py::test_a_directory_in_sys_module_is_no_module",
        "`insmod --force-modversion`, `--force-vermagic`":
            "tests/unit/cli/test_insmod.py::test_force_is_for_the_kernel",
        "a compressed module of more than 1 GiB decompressed":
            "tests/unit/modfile/test_decompress.py::test_modinfo_and_depmod_name_a_file_beyond_the_limit",
        "a FIFO, socket or device in place of a file of configuration, an index or a module, or a configuration or "
        "index of more than 64 MiB":
            "tests/property/test_special_files.py::test_every_verb_ends_whatever_lies_in_the_place_of_a_file",
        "forced load on a kernel without finit_module":
            "tests/unit/loader/test_worker.py::test_a_kernel_without_finit_module_gets_the_bytes",
        "`lsmod --json`": "tests/unit/cli/test_lsmod.py::test_json",
        "`lsmod` while modules are loaded and removed":
            "tests/unit/cli/test_lsmod.py::test_sys_gives_the_order_of_holders_and_nothing_else",
        "`rmmod` of a module that is being unloaded":
            "tests/unit/cli/test_rmmod.py::test_a_module_that_is_being_unloaded",
        "an install or remove command is killed by a signal": ACTING,
    },
    "depmod, modinfo, static-nodes": {
        "`-V`": f"{ROWS}::test_the_version_names_zlib",
        "zstd": "tests/unit/modfile/test_decompress.py::test_without_the_library_zstd_is_an_error",
        "the reason of a decompressor":
            "tests/differential/test_depmod.py::test_the_reason_of_a_decompressor_is_left_out_of_34s_messages",
        "zstd without a size, or in frames": DEPMOD,
        "`depmod -A`": f"{ROWS}::test_quick_compares_microseconds",
        "`depmod --root DIR`": "tests/differential/test_depmod.py::test_root_is_a_prefix_that_is_not_printed",
        "`--no-cache`, `modules.kmodd-cache`": "tests/unit/cli/test_depmod.py::test_where_no_cache_is_left",
        "index files": "tests/unit/cli/test_depmod.py::test_all_files_or_none",
        "`depmod VERSION FILE` without a directory for VERSION":
            "tests/unit/cli/test_depmod.py::test_the_tree_of_a_kernel_that_is_gone_is_not_made",
        "output directory not writable": f"{ROWS}::test_an_output_directory_that_is_not_writable",
        "a link to a parent directory": "tests/differential/test_depmod.py::test_a_link_up_the_tree_is_followed_once",
        "a name or alias that is not ASCII": "tests/differential/test_depmod.py::test_a_name_beyond_ascii_is_refused",
        "many overlapping cycles": "tests/unit/modfile/test_depmod_graph.py::test_all_need_all",
        "the number in `fstatat(N, …)`": DEPMOD,
        "a bad line of Module.symvers": DEPMOD,
        "`modinfo --json`": "tests/differential/test_modinfo.py::test_json_equals_the_text",
        "damaged PKCS#7": "tests/unit/modfile/test_modinfo.py::test_a_signature_and_every_cut_and_bend_of_it",
    },
    "The daemon, and kmodd's own verbs": {
        "`kmodd lookup`, `kmodd explain`, the daemon": "tests/unit/index/test_catalog.py::test_which_twin_is_read",
        "a dependency whose install command is /bin/true, or whose file is missing":
            "tests/unit/planning/test_resolve.py::test_what_needs_a_missing_file_is_known_to_fail",
        "a request that is a path": "tests/unit/planning/test_resolve.py::test_only_an_operator_may_name_a_path",
        "a configuration file edited in place":
            "tests/unit/host/test_tree.py::test_an_edit_in_place_of_equal_size_is_noticed",
        "an index replaced while it is read":
            "tests/unit/host/test_tree.py::test_an_index_replaced_midway_gives_no_mixture",
    },
})  # fmt: skip
"""Heading → first cell of each row → the test. The rows on kmod 30 are matched by their names in tests/differential."""


def rows(heading: str) -> list[str]:
    """The first cells of a table, below its head."""
    table = COMPAT.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| (.+?) \| ", table, re.MULTILINE)[2:]


def test_every_table_is_here() -> None:
    headings = re.findall(r"^## (.+)$", COMPAT.read_text(), re.MULTILINE)
    assert [heading for heading in headings if rows(heading)] == ["Debian 12's kmod 30", *SHOWN]
    assert rows("nothing like it") == []


@pytest.mark.parametrize("heading", SHOWN)
def test_every_row_names_a_test(heading: str) -> None:
    assert rows(heading) == list(SHOWN[heading])


@pytest.mark.parametrize("test", sorted({ROWS_OF_30, *(test for table in SHOWN.values() for test in table.values())}))
def test_the_test_exists(test: str) -> None:
    file, _, name = test.partition("::")
    found = {node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)}
    assert name in found
