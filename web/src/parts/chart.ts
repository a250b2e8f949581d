/** What the charts share: their place on the page, axes and pointer; uPlot draws them. */
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { onBeforeUnmount, onMounted, ref, type ShallowRef, type WatchSource, watch } from "vue";
import { locale } from "../i18n";
import { shown } from "../theme";

const HEIGHT = 260;

/** A value of the style sheet, in today's theme. */
export function token(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/**
 * A chart as wide as its place, drawn again when theme, language or `changes` do. `options` gets what every axis has.
 * `pointed` is the index under the pointer; `refresh` takes new data without drawing all again.
 */
export function useChart(
  place: Readonly<ShallowRef<HTMLElement | null>>,
  options: (axis: uPlot.Axis) => Pick<uPlot.Options, "scales" | "axes" | "series" | "hooks">,
  data: () => uPlot.AlignedData,
  changes: WatchSource,
) {
  const pointed = ref<number | null>(null);
  let chart: uPlot | null = null;
  let watcher: ResizeObserver | null = null;

  function draw(): void {
    chart?.destroy();
    if (!place.value) return;
    const font = `12px ${getComputedStyle(document.body).fontFamily}`;
    const own = options({ stroke: token("--muted"), font, ticks: { show: false } });
    const frame: uPlot.Options = {
      ...own,
      width: place.value.clientWidth,
      height: HEIGHT,
      legend: { show: false },
      cursor: { y: false, points: { show: false }, drag: { x: false, y: false } },
      hooks: { ...own.hooks, setCursor: [(drawn) => (pointed.value = drawn.cursor.idx ?? null)] },
    };
    chart = new uPlot(frame, data(), place.value);
  }

  onMounted(() => {
    draw();
    watcher = new ResizeObserver(() => chart?.setSize({ width: place.value?.clientWidth ?? 0, height: HEIGHT }));
    if (place.value) watcher.observe(place.value);
  });
  onBeforeUnmount(() => {
    watcher?.disconnect();
    chart?.destroy();
  });
  watch([changes, shown, locale], draw, { flush: "post" });
  return { pointed, refresh: () => chart?.setData(data()) };
}
