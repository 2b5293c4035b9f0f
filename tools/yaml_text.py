"""YAML from people and planners: safe tags only, and no key given twice."""

from __future__ import annotations

import typing
from typing import Any

__all__ = ["dump_yaml", "parse_yaml"]


def parse_yaml(text: str) -> Any:
    """Return what a YAML (or JSON) text holds.

    A key given twice is refused: the last one would silently win.

    Raises:
        ValueError: the text is no YAML, or uses a tag that is not plain data.
    """
    import yaml

    class UniqueKeyLoader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if isinstance(key, str) and key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} is given twice", key_node.start_mark
                    )
                if isinstance(key, str):
                    seen.add(key)
            return typing.cast("dict[Any, Any]", super().construct_mapping(node, deep=deep))

    try:
        return yaml.load(text, Loader=UniqueKeyLoader)
    except (yaml.YAMLError, RecursionError) as err:
        raise ValueError(str(err) or "nested too deeply") from err


def dump_yaml(value: Any) -> str:
    """Return plain values as YAML that `parse_yaml` reads back to the same values.

    Letters of every script stay readable, unless the text holds one that YAML folds away,
    such as the line break U+0085: then all of them are escaped.
    """
    import yaml

    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    return text if yaml.safe_load(text) == value else yaml.safe_dump(value, sort_keys=False)
