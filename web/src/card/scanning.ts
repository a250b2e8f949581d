/** Reading a code with the camera, where the browser has a detector (W3C Shape Detection: Barcode). */
export interface Detector {
  detect(source: HTMLVideoElement): Promise<{ rawValue: string }[]>;
}

type DetectorClass = (new (options?: { formats: string[] }) => Detector) & { getSupportedFormats(): Promise<string[]> };

const BarcodeDetector = (window as { BarcodeDetector?: DetectorClass }).BarcodeDetector;
const WANTED = ["qr_code", "code_128", "code_39", "data_matrix", "ean_13", "itf", "pdf417"];

async function formats(): Promise<string[]> {
  const known = (await BarcodeDetector?.getSupportedFormats().catch(() => [])) ?? [];
  return WANTED.filter((format) => known.includes(format));
}

export async function canScan(): Promise<boolean> {
  return "mediaDevices" in navigator && (await formats()).length > 0;
}

export async function makeDetector(): Promise<Detector | null> {
  return BarcodeDetector ? new BarcodeDetector({ formats: await formats() }) : null;
}
