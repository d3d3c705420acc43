"""Everything that is changed on a model while it is sparse, and its way back: one table for the whole package.

The way back is entered before the change is made and may be taken twice, so that an interrupt at any moment leaves the
model as it was.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # graders of tasks are changed too, where torch is not needed
    from torch import nn

Hook = Callable[..., Any]


class Hooks:
    """Changes to one model. `restore` undoes them, the newest first; nothing is undone that was not made."""

    def __init__(self) -> None:
        self._ways_back: list[Callable[[], object]] = []

    def before(self, module: "nn.Module", hook: Hook) -> None:
        """hook(module, args, kwargs) before the module runs; it may return other (args, kwargs)."""
        self._ways_back.append(lambda: _forget(hook, module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs))
        module.register_forward_pre_hook(hook, with_kwargs=True)

    def after(self, module: "nn.Module", hook: Hook) -> None:
        """hook(module, args, kwargs, output) after the module ran; it may return another output."""
        self._ways_back.append(lambda: _forget(hook, module._forward_hooks, module._forward_hooks_with_kwargs))
        module.register_forward_hook(hook, with_kwargs=True)

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute on this one object; on the way back it has what it had of its own, or nothing."""
        absent = object()
        own = owner.__dict__.get(name, absent)

        def put_back() -> None:
            owner.__dict__.pop(name, None) if own is absent else owner.__dict__.__setitem__(name, own)

        self._ways_back.append(put_back)
        owner.__dict__[name] = value

    def on_restore(self, way_back: Callable[[], object]) -> None:
        """way_back: for a change that is made after this call; it may be called twice, and for a change half made."""
        self._ways_back.append(way_back)

    def restore(self) -> None:
        """Undo everything, whatever fails or is interrupted meanwhile; what was raised first is raised at the end."""
        failed: BaseException | None = None
        while self._ways_back:
            try:
                self._ways_back[-1]()
                self._ways_back.pop()
            except KeyboardInterrupt as interrupt:  # the way back is taken again
                failed = failed or interrupt
            except Exception as error:
                self._ways_back.pop()
                failed = failed or error
        if failed is not None:
            raise failed


def _forget(hook: Hook, *tables: dict[int, Any]) -> None:
    """Take a hook out of a module's tables; the first one holds the hooks, the others what is known of them."""
    for number in [number for number, own in tables[0].items() if own is hook]:
        for table in reversed(tables):
            table.pop(number, None)
