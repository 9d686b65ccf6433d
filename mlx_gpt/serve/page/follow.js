// Keeps the end of a growing text in view, unless the reader has scrolled away from it.

export class Follower {
  // `end` is an element after the text. While a part of it is in view, the text is followed.
  constructor(end) {
    Object.assign(this, { end, following: true, due: false });
    new IntersectionObserver(([entry]) => (this.following = entry.isIntersecting)).observe(end);
  }

  begin() {
    this.following = true;
    this.grown();
  }

  grown() {
    if (this.due) return;
    this.due = true;
    requestAnimationFrame(() => {
      this.due = false;
      if (this.following) this.end.scrollIntoView({ block: "end" });
    });
  }
}
