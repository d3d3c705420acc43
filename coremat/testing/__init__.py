"""What a stranger needs to check a pruning method: tiny models of every family, a slow reference, the invariants.

from coremat.testing import check_method

for finding in check_method("./mine.py:ShortKeys"):
    print(finding)
"""

from coremat.testing.invariants import Finding, check_method

__all__ = ["Finding", "check_method"]
