"""`shmtrace top` on a terminal: tables that are redrawn for every new account.

The screen is handed accounts and does not know where they come from. Rows are Text objects, never markup: a process
could put markup into its name. All text has the terminal's own colours, and what stands out is bold or reversed: so it
is legible on any background.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, Callable, ClassVar, Generic, cast

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.events import Click, Resize
from textual.geometry import Size
from textual.screen import ModalScreen
from textual.style import Style
from textual.widgets import ContentSwitcher, Footer, Input, OptionList, Static
from textual.widgets.option_list import Option
from textual.worker import Worker

from tracer.formatting import printable
from tracer.model import Account
from tracer.views import top
from tracer.views.top import REGION_COLUMNS, LineColumn, Opened, Row

MAX_ROWS = 200  # of a table; sorting by another column shows others
SCROLLBAR_COLUMNS = 1
MAX_PARTS = 3  # tables of an opened grower
NOTE_S = 10.0
NO_LABELS = "--label php or postgres tells what pages were made for: scripts or queries"

HELP = """\
s, S     sort by the next column, or the one before; or click on one
Tab      go to the other table
↑ ↓      select a row; on the first row, the list stays at its top
Enter    open the selected row: who touched a region; the processes,
         regions and labels of a grower
Esc      end the filter, or go back
/        show only rows that contain a text
b        group by the next of: script, request, file, query
         (with --label), command, creator, unit, container, pod,
         process
p        pause or resume the display; the trace itself goes on
q        stop the trace and print its report; Ctrl-C does the same
?        this help; any key closes it

used     allocated, of the region's size
rate     growth a second in the last 10 seconds
full in  the time until it is full, if it grows as in 5 minutes
5 min    growth in each half minute
delta    change since the last update; "." means none
grown    change since the trace began
touched  of the pages allocated now, those the grower touched first;
         those that grow now come first
"""


class Heading(Static):
    """The titles of a table's columns. A click on one sorts by it."""

    def on_click(self, event: Click) -> None:
        if isinstance(self.parent, TableWidget):
            self.parent.sort_at(event.x)


class Rows(OptionList):
    """The rows of a table."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "select", "Open")]

    def get_visual_style(self, *component_classes: str, partial: bool = False) -> Style:
        """As the CSS says, and the cursor's row reversed: textual 8.2 leaves that out."""
        style = super().get_visual_style(*component_classes, partial=partial)
        is_cursor = self.has_focus and "option-list--option-highlighted" in component_classes
        return style + Style(reverse=True) if is_cursor else style


class TableWidget(Vertical, Generic[Row]):
    """A table sorted by one column, with as many columns as fit. The selected row stays selected when it moves."""

    def __init__(self, columns: Sequence[LineColumn[Row]], sorted_by: str, **options: Any) -> None:
        super().__init__(**options)
        self._columns: Sequence[LineColumn[Row]] = ()
        self.reshape(columns, sorted_by)

    def reshape(self, columns: Sequence[LineColumn[Row]], sorted_by: str) -> None:
        """Replace the columns, unless they have the same titles. The rows are forgotten."""
        if [column.title for column in columns] == [column.title for column in self._columns]:
            return
        self._columns = columns
        self._sorted_by = next(number for number, column in enumerate(columns) if column.title == sorted_by)
        self._rows: Sequence[Row] = []
        self._shown: list[Row] = []

    def compose(self) -> ComposeResult:
        yield Heading(classes="heading", markup=False)
        yield Rows(markup=False)

    @property
    def chosen(self) -> Row | None:
        """The selected row."""
        number = self.query_one(Rows).highlighted
        return self._shown[number] if number is not None and number < len(self._shown) else None

    @property
    def _room(self) -> int:
        """Columns for a row. A table is as wide as the terminal, which is known before the table is laid out."""
        return max(self._top.room - SCROLLBAR_COLUMNS, 1)

    @property
    def _top(self) -> Top:
        return cast(Top, self.app)

    def show(self, rows: Sequence[Row], containing: str = "") -> None:
        """Replace the rows by those that contain a text.

        The selection follows its row, but stays on the first line if it is there.
        """
        chosen: Any = self.chosen
        at_first = not self.query_one(Rows).highlighted
        self._rows = top.matching(rows, self._columns, containing)
        column, room = self._columns[self._sorted_by], self._room
        self._shown = top.sort(self._rows, column)[:MAX_ROWS]
        table = self.query_one(Rows)
        self.query_one(Heading).update(self._text(top.heading(self._columns, column, room)))
        texts = top.lines(self._shown, self._columns, room)
        options = [Option(self._text(text, _style(row))) for text, row in zip(texts, self._shown)]
        if len(self._rows) > MAX_ROWS:
            more = f"…{len(self._rows) - MAX_ROWS} more; press s to sort differently"
            options.append(Option(self._text(more), disabled=True))
        kept_y = table.scroll_y
        table.set_options(options)
        keys = [row.key for row in self._shown]  # type: ignore[attr-defined]
        if not at_first and chosen and chosen.key in keys:
            table.highlighted = keys.index(chosen.key)
        elif keys:
            table.highlighted = 0
        table.scroll_to(y=0 if at_first else kept_y, animate=False)

    def _text(self, text: str, style: str = "") -> Text:
        return Text(self._top.told(text), style, no_wrap=True)

    def sort(self, step: int) -> None:
        """Sort by another of the columns that are shown. step: how many columns to the right."""
        shown = [column for column, _ in top.layout(self._columns, self._room)]
        now = self._columns[self._sorted_by]
        self._sort_by(shown[((shown.index(now) if now in shown else 0) + step) % len(shown)])

    def sort_at(self, place: int) -> None:
        """Sort by the column that stands at this place of the heading."""
        column = top.column_at(self._columns, self._room, place)
        if column:
            self._sort_by(column)

    def _sort_by(self, column: LineColumn[Row]) -> None:
        self._sorted_by = self._columns.index(column)
        self.show(self._rows)


def _style(row: Any) -> str:
    return "bold" if row.delta_bytes and not row.ended else ""


class Help(ModalScreen[None]):
    """The help. Any key closes it."""

    def compose(self) -> ComposeResult:
        yield Static(HELP, id="help", markup=False)

    def on_key(self) -> None:
        self.dismiss()


@dataclass
class Level:
    """What is looked at: all, or what was opened there; and what its rows must contain."""

    opened: Opened | None = None
    containing: str = ""
    focused: Rows | None = None
    """where Esc leads back to"""


class Top(App[Account]):
    """The application. It exits with the complete account, or with None."""

    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = ""  # there is nothing to select before the first account
    CSS = """
    * { color: ansi_default; background: ansi_default; }
    *, *:hover, *:focus { scrollbar-color: ansi_default; scrollbar-background: ansi_default; }
    Static { height: auto; text-wrap: nowrap; text-overflow: ellipsis; }
    .heading { text-style: reverse; height: 1; width: 1fr; }
    .status { height: auto; max-height: 2; width: 1fr; }
    #answer { text-style: bold; max-height: 3; }
    ContentSwitcher, Vertical { height: 1fr; }
    #regions { height: auto; min-height: 3; max-height: 45%; } #regions OptionList { height: auto; }
    .about { max-height: 50%; }
    OptionList, OptionList:focus { border: none; padding: 0; height: 1fr; }
    OptionList { scrollbar-size-vertical: 1; scrollbar-gutter: stable; }
    OptionList > .option-list--option, OptionList > .option-list--option-disabled { padding: 0; }
    OptionList > .option-list--option, OptionList > .option-list--option-disabled,
    OptionList > .option-list--option-hover, OptionList > .option-list--option-highlighted {
        color: ansi_default; background: ansi_default; text-style: none;
    }
    FooterKey .footer-key--key, FooterKey .footer-key--description, FooterKey:hover {
        color: ansi_default; background: ansi_default;
    }
    #filter, #filter:focus { border: none; padding: 0; height: 1; display: none; }
    #filter > .input--placeholder { color: ansi_default; text-style: none; }
    #filter > .input--cursor { color: ansi_default; background: ansi_default; text-style: reverse; }
    Help { align: center middle; }
    #help { border: round ansi_default; width: 72; max-width: 100%; max-height: 100%; overflow-y: auto; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "end", "Quit"),
        Binding("ctrl+c", "end", show=False, priority=True),
        Binding("p", "pause", "Pause"),
        Binding("s", "sort(1)", "Sort"),
        Binding("S", "sort(-1)", show=False),
        Binding("b", "by", "By"),
        Binding("slash", "filter", "Filter"),
        Binding("escape", "leave", "Back"),
        Binding("question_mark", "help", "Help"),
    ]

    def __init__(
        self,
        attaching: str,
        following: Callable[[], Awaitable[Account | None]],
        stop: Callable[[], None],
        by: str | None = None,
        ascii_only: bool = False,
    ) -> None:
        """attaching: what is said until the first account comes.

        following: waits for the next account, the last of which is complete; None: there is no more. stop: ask the
        trace to end. by: how growers are grouped at first; None: as top.by_default() says. ascii_only: the terminal
        can show no more.
        """
        super().__init__(ansi_color=True)
        self._attaching = attaching
        self._following = following
        self._stop = stop
        self._by = by
        self._ascii_only = ascii_only
        self._latest: top.View | None = None
        self._view: top.View | None = None
        self._paused = self._ending = False
        self._levels = [Level()]
        self._note = ""
        self._resized_to: Size | None = None
        self.follower: Worker[None] | None = None

    def compose(self) -> ComposeResult:
        yield Static(self.told(self._attaching), id="answer", classes="status", markup=False)
        yield Static(id="where", classes="status", markup=False)
        yield Static(id="balance", markup=False)
        with ContentSwitcher(id="levels"):
            with Vertical(id="tables"):
                yield TableWidget(REGION_COLUMNS, "grown", id="regions")
                yield TableWidget(top.grower_columns("process"), "touched", id="growers")
            with Vertical(id="region"):
                yield Static(id="about", classes="about", markup=False)
                yield TableWidget(top.grower_columns("process"), "touched", id="touchers")
            with Vertical(id="grower"):
                yield Static(id="about_grower", classes="about", markup=False)
                for number in range(MAX_PARTS):
                    yield TableWidget(top.grower_columns("process"), "touched", id=f"part{number}")
        yield Input(id="filter", placeholder="rows that contain …", compact=True, select_on_focus=False)
        yield Footer()

    def on_mount(self) -> None:
        self.follower = self.run_worker(self._follow(), exit_on_error=False)

    async def _follow(self) -> None:
        final = None
        try:
            while now := await self._following():
                if now.session.complete:
                    final = now
                    break
                is_first = not self._latest
                self._latest = top.compare(now, self._latest)
                self._draw()
                if is_first:
                    self._focus()
        finally:
            self.exit(final)

    def _print_error_renderables(self) -> None:
        """Print nothing: show() raises the error. textual would print a traceback with all variables."""
        self._exit_renderables.clear()

    def leave(self) -> None:
        """Give the terminal back as it was, at once."""
        if self._driver:
            self._driver.stop_application_mode()
            self._driver.close()

    def on_resize(self, event: Resize) -> None:
        self._resized_to = event.size  # before textual lays anything out
        self._draw()

    @property
    def room(self) -> int:
        """Columns of the terminal."""
        return max((self._resized_to or self.size).width, 1)

    def told(self, text: str) -> str:
        """The text as the terminal can show it."""
        return text.translate(top.ASCII) if self._ascii_only else text

    # ---- drawing ----

    def _draw(self) -> None:
        """Draw what is looked at. Nothing is drawn before the first account has come."""
        if not (self._paused and self._view):
            self._view = self._latest
        view, level = self._view, self._levels[-1]
        with self.batch_update():
            where, *below = top.status(view) if view else [""]
            self._tell("#where", " · ".join(filter(None, [*self._states(), where])))
            if not view:
                return
            self._tell("#answer", *top.headline(view, self.room))
            self._tell("#balance", *below, *([self._note] if self._note else []))
            if not level.opened:
                self._draw_tables(view)
            elif level.opened.by == "region":
                self._draw_region(view, level.opened)
            else:
                self._draw_grower(view, level.opened)
            self._main("#levels", ContentSwitcher).current = _widget_of(level)

    def _states(self) -> list[str]:
        """What is to be known of the display, before the trace's own state."""
        containing = self._levels[-1].containing
        return [
            *(["ending"] if self._ending else ["paused"] if self._paused else []),
            *([f"filter {printable(containing)}"] if containing else []),
        ]

    def _draw_tables(self, view: top.View) -> None:
        by = self._grouped_by(view)
        self._show("#regions", REGION_COLUMNS, view.regions)
        self._show("#growers", top.grower_columns(by), top.growers(view, by))

    def _draw_region(self, view: top.View, opened: Opened) -> None:
        row = next((row for row in view.regions if row.key == opened.key), None)
        if row:
            by = self._grouped_by(view)
            self._tell("#about", *top.describe(row, view.account.session))
            self._show("#touchers", top.grower_columns(by, opened), top.growers(view, by, row))

    def _draw_grower(self, view: top.View, opened: Opened) -> None:
        row = next((row for row in top.growers(view, opened.by) if row.key == opened.key), None)
        if row:
            self._tell("#about_grower", *top.describe_grower(row))
            parts = top.parts(view, opened)
            for number in range(MAX_PARTS):
                self._main(f"#part{number}", TableWidget).display = number < len(parts)
            for number, by in enumerate(parts):
                columns = top.grower_columns(by, opened)
                self._show(f"#part{number}", columns, top.inside(view, opened, by))

    def _grouped_by(self, view: top.View) -> str:
        return self._by or top.by_default(view)

    def _tell(self, selector: str, *lines: str) -> None:
        text = Text(self.told("\n".join(lines)), no_wrap=True, overflow="ellipsis")
        self._main(selector, Static).update(text)

    def _show(self, selector: str, columns: Sequence[LineColumn[Any]], rows: Sequence[Any]) -> None:
        table = self._main(selector, TableWidget)
        table.reshape(columns, "grown" if columns is REGION_COLUMNS else "touched")
        table.show(rows, self._levels[-1].containing)

    def _main(self, selector: str, kind: Any) -> Any:
        """A widget of the main screen, also while the help covers it."""
        return self.screen_stack[0].query_one(selector, kind)

    def _note_focus(self) -> None:
        if isinstance(self.focused, Rows):
            self._levels[-1].focused = self.focused

    def _focus(self) -> None:
        """Put the cursor where it was on this level, or else into its first table."""
        level = self._levels[-1]
        self.screen_stack[0].set_focus(level.focused or self._main(f"#{_widget_of(level)} Rows", Rows))

    # ---- keys ----

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        table = event.option_list.parent
        if isinstance(event.option_list, Rows) and isinstance(table, TableWidget) and table.chosen:
            self._note_focus()
            self._go(Level(table.chosen.opens))

    def action_leave(self) -> None:
        level = self._levels[-1]
        if level.containing or self._main("#filter", Input).display:
            level.containing = ""
            self._close_filter()
        elif level.opened:
            self._levels.pop()
            self._go()

    def _go(self, deeper: Level | None = None) -> None:
        """Show another level: one that was opened, or the one that Esc has led back to."""
        if deeper:
            self._levels.append(deeper)
            for rows in self._main(f"#{_widget_of(deeper)}", Vertical).query(Rows):
                rows.highlighted = None
        self._close_filter()

    def _close_filter(self) -> None:
        self._main("#filter", Input).display = False
        self._draw()
        self._focus()

    def action_filter(self) -> None:
        if self._view:
            self._note_focus()
            field = self._main("#filter", Input)
            field.display = True
            field.value = self._levels[-1].containing
            self.screen.set_focus(field)  # at once: what is typed next belongs into it

    def on_input_changed(self, event: Input.Changed) -> None:
        if event.input.display:
            self._levels[-1].containing = event.value
            self._draw()

    def on_input_submitted(self) -> None:
        self._close_filter()

    def action_sort(self, step: int) -> None:
        table = self.focused.parent if self.focused else None
        if isinstance(table, TableWidget):
            table.sort(step)

    def action_by(self) -> None:
        if self._view:
            kinds, by = top.kinds(self._view), self._grouped_by(self._view)
            self._by = kinds[(kinds.index(by) + 1) % len(kinds)] if by in kinds else kinds[0]
            self._note = "" if self._view.account.session.label else NO_LABELS
            self.set_timer(NOTE_S, self._forget_note)
            self._draw()

    def _forget_note(self) -> None:
        self._note = ""
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


def _widget_of(level: Level) -> str:
    """The id of the widget that shows a level."""
    if not level.opened:
        return "tables"
    return "region" if level.opened.by == "region" else "grower"


def show(
    attaching: str,
    following: Callable[[], Awaitable[Account | None]],
    stop: Callable[[], None],
    by: str | None,
) -> Account | None:
    """Run the screen until the trace has ended. Returns the complete account, or None if there is none.

    Raises what following() or the drawing raised.
    """
    app = Top(attaching, following, stop, by, not _has_bars())
    try:
        final = app.run()
    except SystemExit:  # a second signal, and textual has not left the screen
        app.leave()
        raise
    error = (app.follower and app.follower.error) or app._exception
    if error:
        raise error
    return final


def _has_bars() -> bool:
    """Whether the terminal's encoding has the characters of a trend."""
    try:
        top.BARS.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return False
    return True
