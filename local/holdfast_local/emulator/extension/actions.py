"""Requests that ministack takes for another action when it asks whether policies allow them."""

from typing import Any

from holdfast_local.emulator.extension.seams import seam


def install() -> None:
    """Ask for `lambda:ListFunctionUrlConfigs` where a function's URLs are listed; ministack asks for GetFunction."""
    actions = seam("ministack.core.iam_actions", "_lambda_action")
    stock = actions._lambda_action

    def lambda_action(method: str, path: str) -> Any:
        if method == "GET" and path.rstrip("/").endswith("/urls") and "/functions/" in path:
            return "ListFunctionUrlConfigs"
        return stock(method, path)

    actions._lambda_action = lambda_action
