"""`shmtrace top` on a terminal: tables that are redrawn for every new account.

The screen is handed accounts and does not know where they come from. Rows are Text objects, never markup: a process
could put markup into its name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Callable, ClassVar, Generic

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.events import Resize
from textual.screen import ModalScreen
from textual.widgets import ContentSwitcher, Footer, OptionList, Static
from textual.widgets.option_list import Option
from textual.worker import Worker

from tracer.account import Account
from tracer.views import top
from tracer.views.top import REGION_COLUMNS, LineColumn, RegionLine, Row

MAX_ROWS = 200  # of a table; sorting by another column shows others

HELP = """\
s, S     sort by the next column, or by the previous one
Tab      go to the other table
↑ ↓      select a row; on the first row, the list stays at its top
Enter    open the selected region: who touched it, who maps it
Esc      go back
b        group growers by the next of: process, with --label also
         script, request, file or query, then unit or container
p        pause or resume the display; the trace itself goes on
q        stop the trace and print its report; Ctrl-C does the same
?        this help; any key closes it

delta    change since the last update; "." means none
grown    change since the trace began
touched  of the pages allocated now, those the grower touched first
"""


class TableWidget(Vertical, Generic[Row]):
    """A table sorted by one column, with as many columns as fit. The selected row stays selected when it moves."""

    def __init__(self, columns: Sequence[LineColumn[Row]], sorted_by: str, **options: Any) -> None:
        super().__init__(**options)
        self.reshape(columns, sorted_by)

    def reshape(self, columns: Sequence[LineColumn[Row]], sorted_by: str) -> None:
        """Replace the columns. The rows are cleared."""
        self._columns = columns
        self._sorted_by = next(number for number, column in enumerate(columns) if column.title == sorted_by)
        self._rows: Sequence[Row] = []
        self._shown: list[Row] = []

    def compose(self) -> ComposeResult:
        yield Static(classes="heading", markup=False)
        yield OptionList(markup=False)

    @property
    def chosen(self) -> Row | None:
        """The selected row."""
        number = self.query_one(OptionList).highlighted
        return self._shown[number] if number is not None and number < len(self._shown) else None

    def show(self, rows: Sequence[Row]) -> None:
        """Replace the rows. The selection follows its row, but stays on the first line if it is there."""
        chosen: Any = self.chosen
        at_first = not self.query_one(OptionList).highlighted
        self._rows = rows
        column = self._columns[self._sorted_by]
        self._shown = top.sort(rows, column)[:MAX_ROWS]
        table = self.query_one(OptionList)
        room = max(table.scrollable_content_region.width, 1)
        self.query_one(".heading", Static).update(Text(top.heading(self._columns, column, room), no_wrap=True))
        texts = top.lines(self._shown, self._columns, room)
        options = [Option(Text(text, _style(row), no_wrap=True)) for text, row in zip(texts, self._shown)]
        if len(rows) > MAX_ROWS:
            options.append(Option(Text(f"…{len(rows) - MAX_ROWS} more; press s to sort differently"), disabled=True))
        kept_y = table.scroll_y
        table.set_options(options)
        keys = [row.key for row in self._shown]  # type: ignore[attr-defined]
        if not at_first and chosen and chosen.key in keys:
            table.highlighted = keys.index(chosen.key)
        elif keys:
            table.highlighted = 0
        table.scroll_to(y=0 if at_first else kept_y, animate=False)

    def sort(self, step: int) -> None:
        """Sort by another of the columns that are shown. step: how many columns to the right."""
        room = self.query_one(OptionList).scrollable_content_region.width
        shown = [column for column, _ in top.layout(self._columns, room)]
        now = self._columns[self._sorted_by]
        chosen = shown[((shown.index(now) if now in shown else 0) + step) % len(shown)]
        self._sorted_by = self._columns.index(chosen)
        self.show(self._rows)

    def on_resize(self, _: Resize) -> None:
        self.show(self._rows)


def _style(row: Any) -> str:
    if row.delta_bytes and not (isinstance(row, RegionLine) and row.ended):
        return "bold"
    return "dim" if row.ended else ""


class Help(ModalScreen[None]):
    """The help. Any key closes it."""

    def compose(self) -> ComposeResult:
        yield Static(HELP, id="help", markup=False)

    def on_key(self) -> None:
        self.dismiss()


class Top(App[Account]):
    """The application. It exits with the complete account, or with None."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Static { height: auto; text-wrap: nowrap; text-overflow: ellipsis; }
    .heading { text-style: reverse; height: 1; width: 1fr; }
    .status { height: auto; max-height: 2; width: 1fr; }
    ContentSwitcher, Vertical { height: 1fr; }
    #regions { height: auto; min-height: 3; max-height: 45%; } #regions OptionList { height: auto; }
    #about { max-height: 50%; }
    OptionList, OptionList:focus { border: none; padding: 0; height: 1fr; background: transparent; }
    OptionList { scrollbar-size-vertical: 1; scrollbar-gutter: stable; }
    OptionList > .option-list--option, OptionList > .option-list--option-disabled { padding: 0; }
    OptionList > .option-list--option-highlighted { text-style: none; }
    OptionList:focus > .option-list--option-highlighted { text-style: reverse; }
    Help { align: center middle; }
    #help { border: round; width: 72; max-width: 100%; max-height: 100%; overflow-y: auto; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "end", "Quit"),
        Binding("ctrl+c", "end", show=False, priority=True),
        Binding("p", "pause", "Pause"),
        Binding("s", "sort(1)", "Sort"),
        Binding("S", "sort(-1)", show=False),
        Binding("b", "by", "By"),
        Binding("escape", "leave", "Back"),
        Binding("question_mark", "help", "Help"),
    ]

    def __init__(
        self,
        first: Account,
        following: Callable[[], Awaitable[Account | None]],
        stop: Callable[[], None],
        by: str = "process",
    ) -> None:
        """following: waits for the next account, the last of which is complete; None: there is no more.

        stop: ask the trace to end. by: how growers are grouped at first.
        """
        super().__init__(ansi_color=True)
        self._following = following
        self._stop = stop
        self._by = by
        self._latest = self._view = top.compare(first, None)
        self._paused = self._ending = False
        self._looked_at: int | None = None
        self.follower: Worker[None] | None = None

    def compose(self) -> ComposeResult:
        yield Static(id="where", classes="status", markup=False)
        yield Static(id="balance", classes="status", markup=False)
        with ContentSwitcher(initial="tables"):
            with Vertical(id="tables"):
                yield TableWidget(REGION_COLUMNS, "grown", id="regions")
                yield TableWidget(top.grower_columns(self._by), "touched", id="growers")
            with Vertical(id="region"):
                yield Static(id="about", markup=False)
                yield TableWidget(top.grower_columns(self._by, of_one=True), "touched", id="touchers")
        yield Footer()

    def on_mount(self) -> None:
        self.query_one("#regions OptionList").focus()
        self.follower = self.run_worker(self._follow(), exit_on_error=False)

    async def _follow(self) -> None:
        final = None
        try:
            while now := await self._following():
                if now.session.complete:
                    final = now
                    break
                self._latest = top.compare(now, self._latest)
                self._draw()
        finally:
            self.exit(final)

    def _print_error_renderables(self) -> None:
        """Print nothing: show() raises the error. textual would print a traceback with all variables."""
        self._exit_renderables.clear()

    def on_resize(self, _: Resize) -> None:
        self._draw()

    def _draw(self) -> None:
        if not self._paused:
            self._view = self._latest
        where, *below = top.status(self._view)
        state = "ending · " if self._ending else "paused · " if self._paused else ""
        with self.batch_update():
            self._main("#where", Static).update(Text(f"{state}{where}", no_wrap=True, overflow="ellipsis"))
            self._main("#balance", Static).update(Text("\n".join(below), no_wrap=True, overflow="ellipsis"))
            self._main("#regions", TableWidget).show(self._view.regions)
            self._main("#growers", TableWidget).show(top.growers(self._view, self._by))
            self._draw_region()

    def _draw_region(self) -> None:
        row = next((row for row in self._view.regions if row.key == self._looked_at), None)
        if row:
            lines = top.describe(row, self._view.account.session.complete)
            self._main("#about", Static).update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"))
            self._main("#touchers", TableWidget).show(top.growers(self._view, self._by, row))

    def _main(self, selector: str, kind: Any) -> Any:
        """A widget of the main screen, also while the help covers it."""
        return self.screen_stack[0].query_one(selector, kind)

    # ---- keys ----

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        table = event.option_list.parent
        if isinstance(table, TableWidget) and isinstance(table.chosen, RegionLine):
            self._looked_at = table.chosen.key
            self._main("ContentSwitcher", ContentSwitcher).current = "region"
            self._main("#touchers OptionList", OptionList).focus()
            self._draw_region()

    def action_leave(self) -> None:
        if self._looked_at:
            self._looked_at = None
            self._main("ContentSwitcher", ContentSwitcher).current = "tables"
            self._main("#regions OptionList", OptionList).focus()

    def action_sort(self, step: int) -> None:
        table = self.focused.parent if self.focused else None
        if isinstance(table, TableWidget):
            table.sort(step)

    def action_by(self) -> None:
        kinds = top.kinds(self._view)
        self._by = kinds[(kinds.index(self._by) + 1) % len(kinds)] if self._by in kinds else kinds[0]
        self._main("#growers", TableWidget).reshape(top.grower_columns(self._by), "touched")
        self._main("#touchers", TableWidget).reshape(top.grower_columns(self._by, of_one=True), "touched")
        self._draw()

    def action_pause(self) -> None:
        self._paused = not self._paused
        self._draw()

    def action_help(self) -> None:
        self.push_screen(Help())

    def action_end(self) -> None:
        self._ending = True
        self._draw()
        self._stop()


def show(
    first: Account, following: Callable[[], Awaitable[Account | None]], stop: Callable[[], None], by: str
) -> Account | None:
    """Run the screen until the trace has ended. Returns the complete account, or None if there is none.

    Raises what following() or the drawing raised.
    """
    app = Top(first, following, stop, by)
    final = app.run()
    error = (app.follower and app.follower.error) or app._exception
    if error:
        raise error
    return final
