// Keeps the end of a growing text in view, unless the reader has scrolled away from it.

export class Follower {
  // `end` is an element after the text. `scroller` is the element that scrolls; in a low window the document scrolls.
  // `below` is the element below the text, which stays in view.
  constructor(end, scroller, below) {
    Object.assign(this, { end, scroller, below, following: true, due: false, top: 0 });
    addEventListener("scroll", () => this.scrolled(), true);
  }

  scrolled() {
    const views = [this.scroller, document.scrollingElement], top = views[0].scrollTop + views[1].scrollTop;
    const atEnd = views.every((view) => view.scrollTop + view.clientHeight >= view.scrollHeight - 1); // of a shorter text
    if (top < this.top && !atEnd) this.following = false;
    else if (this.end.getBoundingClientRect().top < this.below.getBoundingClientRect().top) this.following = true;
    this.top = top;
  }

  begin() {
    this.following = true;
    this.grown();
  }

  // Scrolls once per frame, however often this is called.
  grown() {
    if (this.due) return;
    this.due = true;
    requestAnimationFrame(() => {
      this.due = false;
      if (this.following) this.end.scrollIntoView({ block: "end" });
    });
  }
}
