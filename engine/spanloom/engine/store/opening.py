"""Opening a store by its URL."""

from __future__ import annotations

from urllib.parse import urlsplit

from spanloom.engine.arguments import Text, Url, checked
from spanloom.engine.errors import ConfigurationError
from spanloom.engine.plugins import STORES, plugins
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.urls import shown_url

__all__ = ["open_store", "store_of"]


@checked
def open_store(url: Url, *, namespace: Text = "spanloom") -> ExecutionStore:
    """Return the store that `url` names, without connecting yet.

    `url` is one of `memory://`, `sqlite:///relative.db`, `sqlite:////absolute.db`,
    `postgresql://user:password@host/database`, or has a scheme that an installed package adds by an entry point
    `spanloom.stores`: a class with `from_url(url, namespace)`. `namespace` is the Postgres schema; a store of another
    kind has one namespace only. Raises ConfigurationError for an unknown scheme, a malformed URL, or a driver that is
    not installed.

    >>> store = open_store("memory://")
    >>> store.get_execution_count()
    0
    >>> store.close()
    """
    scheme = _scheme(url)
    classes = plugins(STORES)
    if scheme not in classes:
        known = ", ".join(f"{name}://" for name in sorted(classes)) or "none; reinstall spanloom"
        raise ConfigurationError(f"no store knows URLs that begin with {scheme + '://'!r}; there are: {known}")
    try:
        store_class = classes[scheme].load()
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"a {scheme}:// store needs the package {error.name!r}, which is not installed; "
            f"run `pip install 'spanloom[postgres]'`"
            if scheme.startswith("postgres")
            else f"a {scheme}:// store needs the package {error.name!r}, which is not installed; install it with pip"
        ) from error
    store: ExecutionStore = store_class.from_url(url, namespace)
    return store


def store_of(given: ExecutionStore | str | None, namespace: str) -> ExecutionStore:
    """Return the given store, or the store of a given URL. Raises ConfigurationError."""
    if isinstance(given, ExecutionStore):
        return given
    if given is None:
        raise ConfigurationError(
            "no store: pass store=, or set SPANLOOM_STORE_URL (memory://, sqlite:///…, postgresql://…)"
        )
    if not isinstance(given, str):
        raise ConfigurationError(f"store= takes a URL or an ExecutionStore, not {type(given).__name__}")
    return open_store(given, namespace=namespace)


def _scheme(url: str) -> str:
    try:
        scheme = urlsplit(url).scheme
    except ValueError:
        # Neither the URL nor the error, which may hold a password.
        raise ConfigurationError(f"the store's URL {shown_url(url)!r} is malformed") from None
    if not scheme or "://" not in url:
        raise ConfigurationError(
            "the store's URL has no scheme; write memory://, sqlite:///path.db or postgresql://host/database"
        )
    return scheme
